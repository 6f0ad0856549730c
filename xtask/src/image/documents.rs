// SPDX-License-Identifier: Apache-2.0

//! The texts that are delivered with the programs.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use weft_image::Document;

use super::{
    crates::Crate,
    licences::third_party,
    origin::Origin,
    programs::{rustc, sysroot},
    sbom,
};

/// Weft's own licences, and what they are called.
const LICENCES: [(&str, &str); 3] = [
    ("LICENSE", "LICENSE"),
    ("dataplane-ebpf/programs/LICENSE-BSD-2-Clause", "LICENSE-BSD-2-Clause"),
    ("dataplane-ebpf/programs/LICENSE-GPL-2.0", "LICENSE-GPL-2.0"),
];
/// Files of systemd for a node without Kubernetes.
const UNITS: [&str; 2] = ["weft-vhost@.service", "weft-vhost.sysusers.conf"];
/// Where Debian has the licences of the C library, of the compiler's run-time library, and the texts that these name.
const C_LIBRARY: [&str; 4] = [
    "/usr/share/doc/libc6/copyright",
    "/usr/share/common-licenses/LGPL-2.1",
    "/usr/share/doc/libgcc-s1/copyright",
    "/usr/share/common-licenses/GPL-3",
];
const C_LIBRARY_NOTE: &str = "\
The programs are linked statically with the GNU C Library (LGPL-2.1-or-later) and with GCC's run-time library (GPL-3.0-or-later
with the GCC Runtime Library Exception 3.1). Weft's sources are free, and `cargo xtask image` links them with whatever version of
both is installed: so anybody may put a changed one into the programs, as the LGPL wants it. Their notices and licences follow.
";
/// Where the notices of Rust's standard library are: rustup's below the sysroot, Debian's.
const RUST_LIBRARY: [&str; 2] =
    ["share/doc/rust/COPYRIGHT-library.html", "/usr/share/doc/libstd-rust-web-dev/copyright"];

/// Licences and bill of materials of the sources in `root`.
///
/// # Errors
/// A licence is not where it should be.
pub(super) fn all(root: &Path, linked: &[Crate], origin: &Origin) -> Result<Vec<Document>> {
    let own = LICENCES.iter().map(|(path, name)| read(&root.join(path), name));
    let mut documents = own.collect::<Result<Vec<_>>>()?;
    documents.push(Document { name: "THIRD-PARTY".to_owned(), bytes: third_party(linked)?.into_bytes() });
    documents.push(c_library()?);
    documents.push(rust_library(root)?);
    let runtime = sbom::Runtime::find(rustc(root, &["--version"])?)?;
    documents.push(Document { name: sbom::NAME.to_owned(), bytes: sbom::document(linked, origin, &runtime)? });
    Ok(documents)
}

/// The unit files of the sources in `root`, as the release archive has them.
///
/// # Errors
/// One cannot be read.
pub(super) fn units(root: &Path) -> Result<Vec<Document>> {
    let folder = root.join("vhost-user-net/dist");
    UNITS.iter().map(|name| read(&folder.join(name), &format!("systemd/{name}"))).collect()
}

fn c_library() -> Result<Document> {
    let mut text = C_LIBRARY_NOTE.to_owned();
    for path in C_LIBRARY {
        let part = fs::read_to_string(path).with_context(|| format!("read {path}, a licence of the C library"))?;
        text += &format!("\n{}\n\n{part}", "=".repeat(80));
    }
    Ok(Document { name: "THIRD-PARTY-C".to_owned(), bytes: text.into_bytes() })
}

fn rust_library(root: &Path) -> Result<Document> {
    let sysroot = sysroot(root)?;
    let places: Vec<PathBuf> = RUST_LIBRARY.iter().map(|path| sysroot.join(path)).collect();
    let found = places.iter().find(|path| path.is_file());
    let found = found.with_context(|| format!("no notices of Rust's standard library: none of {places:?} is there"))?;
    let suffix = found.extension().map_or_else(String::new, |suffix| format!(".{}", suffix.to_string_lossy()));
    read(found, &format!("THIRD-PARTY-Rust{suffix}"))
}

fn read(path: &Path, name: &str) -> Result<Document> {
    let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    Ok(Document { name: name.to_owned(), bytes })
}
