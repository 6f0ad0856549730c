// SPDX-License-Identifier: Apache-2.0

//! The programs as they are released: for any Linux of their architecture, and without a trace of the machine that built them.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use weft_image::{PROGRAMS, Platform, is_dynamic};

use crate::build;

/// Builds what is in `root` into the target folder `target` and returns the folder of the programs.
///
/// # Errors
/// It does not build, or not statically.
pub(super) fn build(root: &Path, target: &Path, platform: Platform) -> Result<PathBuf> {
    eprintln!("image: released programs, linked statically, which takes minutes unless they are there already");
    let mut cargo = build::cargo();
    cargo.current_dir(root).args(["build", "--release", "--locked", "--target", platform.target()]);
    cargo.arg("--target-dir").arg(target);
    for program in PROGRAMS {
        cargo.args(["--package", program]);
    }
    let places = places(root, target)?;
    // Not RUSTFLAGS, which a path with a space in it would break, and not a profile: build scripts and macros run here.
    build::run(cargo.env("CARGO_ENCODED_RUSTFLAGS", flags(&places).join("\x1f")))?;
    let folder = target.join(platform.target()).join("release");
    for program in PROGRAMS {
        let path = folder.join(program);
        ensure!(!is_dynamic(&path)?, "{} asks for a dynamic linker: it must be linked statically", path.display());
        let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        if let Some(place) = places.iter().find(|place| place.is_named_in(&bytes)) {
            bail!(
                "{} names the folder {}: another machine would give other bytes",
                path.display(),
                place.path.display()
            );
        }
    }
    Ok(folder)
}

/// A folder of this machine, and what it is called instead.
pub(super) struct Place {
    pub(super) path: PathBuf,
    pub(super) name: &'static str,
    /// What below it a program can only name because it was built there.
    pub(super) telling: &'static str,
}

impl Place {
    /// Whether `program` has a path of this folder in it.
    pub(super) fn is_named_in(&self, program: &[u8]) -> bool {
        let telling = self.path.join(self.telling);
        let wanted = telling.as_os_str().as_encoded_bytes();
        let begins = |(at, byte): (usize, &u8)| *byte == b'/' && program[at..].starts_with(wanted);
        self.path != Path::new(self.name) && program.iter().enumerate().any(begins)
    }
}

/// Panics name the source file: without names in place of folders, another folder would give other bytes.
fn places(root: &Path, target: &Path) -> Result<Vec<Place>> {
    let cargo_home = match env::var_os("CARGO_HOME") {
        Some(path) => PathBuf::from(path),
        None => PathBuf::from(env::var_os("HOME").context("neither CARGO_HOME nor HOME is set")?).join(".cargo"),
    };
    let mut places = vec![
        Place { path: cargo_home, name: "/cargo", telling: "registry" },
        // Debian's is /usr, of which the C library names files.
        Place { path: sysroot(root)?, name: "/rust", telling: "lib/rustlib" },
        Place { path: root.to_owned(), name: "/weft", telling: "" },
    ];
    if !target.starts_with(root) {
        places.push(Place { path: target.to_owned(), name: "/weft/target", telling: "" });
    }
    Ok(places)
}

fn flags(places: &[Place]) -> Vec<String> {
    let remap = places.iter().map(|place| format!("--remap-path-prefix={}={}", place.path.display(), place.name));
    ["-Ctarget-feature=+crt-static", "-Cstrip=symbols"].map(str::to_owned).into_iter().chain(remap).collect()
}

/// Where the compiler and the sources of its library are.
pub(super) fn sysroot(root: &Path) -> Result<PathBuf> {
    Ok(PathBuf::from(rustc(root, &["--print", "sysroot"])?))
}

/// What the compiler of the sources in `root` says.
pub(super) fn rustc(root: &Path, arguments: &[&str]) -> Result<String> {
    let mut rustc = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    let output = rustc.current_dir(root).args(arguments).output().context("start rustc")?;
    ensure!(output.status.success(), "{rustc:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8(output.stdout).context("rustc's output")?.trim().to_owned())
}
