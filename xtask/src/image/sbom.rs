// SPDX-License-Identifier: Apache-2.0

//! The bill of materials, as CycloneDX 1.6 has it.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{
    crates::{Crate, Key},
    origin::{LICENCES, Origin},
};

/// Its file name.
pub(super) const NAME: &str = "sbom.cdx.json";
const SCHEMA: &str = "http://cyclonedx.org/schema/bom-1.6.schema.json";

/// What is linked and is no crate.
pub(super) struct Runtime {
    /// What `rustc --version` says, such as `rustc 1.95.0 (59807616e 2026-04-14)`.
    pub(super) rust: String,
    /// Version of the GNU C library.
    pub(super) c_library: String,
    /// Version of the C compiler, whose run-time library unwinds.
    pub(super) compiler: String,
}

impl Runtime {
    /// Asks the C library and the C compiler, which links.
    ///
    /// # Errors
    /// One does not tell, or is not GNU's.
    pub(super) fn find(rust: String) -> Result<Self> {
        let c_library = output("getconf", "GNU_LIBC_VERSION")?;
        let c_library = c_library.strip_prefix("glibc ").context("the C library is not GNU's")?.to_owned();
        Ok(Self { rust, c_library, compiler: output("cc", "-dumpfullversion")? })
    }
}

fn output(program: &str, argument: &str) -> Result<String> {
    let output = Command::new(program).arg(argument).output().with_context(|| format!("start {program}"))?;
    ensure!(output.status.success(), "{program} {argument}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The document for `linked` crates; the same for the same sources, so it has no serial number.
///
/// # Errors
/// The compiler's version has another form.
pub(super) fn document(linked: &[Crate], origin: &Origin, runtime: &Runtime) -> Result<Vec<u8>> {
    let rust = runtime.rust.split_whitespace().nth(1).context("the compiler's version")?;
    let weft = format!("weft@{}", origin.version);
    let mut components: Vec<_> = linked.iter().map(component).collect();
    components.push(library("rust-std", rust, "MIT OR Apache-2.0"));
    components.push(library("glibc", &runtime.c_library, "LGPL-2.1-or-later"));
    components.push(library("libgcc", &runtime.compiler, "GPL-3.0-or-later WITH GCC-exception-3.1"));
    let all: Vec<_> = components.iter().map(|component| component["bom-ref"].clone()).collect();
    let mut dependencies = vec![json!({"ref": weft, "dependsOn": all})];
    dependencies.extend(linked.iter().map(|linked| {
        json!({"ref": reference(&linked.key(), linked.checksum.is_some()), "dependsOn": uses(linked, all.as_slice())})
    }));
    let document = json!({
        "$schema": SCHEMA,
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": weft_image::rfc3339(origin.modified),
            "component": {
                "type": "application",
                "bom-ref": weft,
                "name": "weft",
                "version": origin.version,
                "licenses": [{"expression": LICENCES}],
            },
        },
        "components": components,
        "dependencies": dependencies,
    });
    Ok(format!("{document:#}\n").into_bytes())
}

/// Crates of a registry are known by their package URL; Weft's own have none.
fn reference((name, version): &Key, registry: bool) -> String {
    if registry { format!("pkg:cargo/{name}@{version}") } else { format!("weft:{name}@{version}") }
}

fn component(linked: &Crate) -> Value {
    let reference = reference(&linked.key(), linked.checksum.is_some());
    let mut component = library(&linked.name, &linked.version, &linked.licence);
    if let Some(checksum) = &linked.checksum {
        component["purl"] = json!(reference);
        component["hashes"] = json!([{"alg": "SHA-256", "content": checksum}]);
    }
    if let Some(url) = &linked.repository {
        component["externalReferences"] = json!([{"type": "vcs", "url": url}]);
    }
    component["bom-ref"] = json!(reference);
    component
}

fn library(name: &str, version: &str, licence: &str) -> Value {
    json!({
        "type": "library",
        "bom-ref": format!("{name}@{version}"),
        "name": name,
        "version": version,
        "licenses": [{"expression": licence}],
    })
}

fn uses(linked: &Crate, known: &[Value]) -> Vec<String> {
    let both = linked.uses.iter().flat_map(|key| [reference(key, true), reference(key, false)]);
    both.filter(|reference| known.iter().any(|known| known == reference)).collect()
}
