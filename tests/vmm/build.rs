// SPDX-License-Identifier: Apache-2.0
//! Builds the guest's program: `guest/main.rs`, linked at the address the guest has it, and laid out as it lies in memory.
//!
//! The guest is a freestanding program for the host's own target, so it needs no toolchain but the one that builds the
//! rest. It is always optimised, whatever the profile: it has no library to call, and a link error says if it tried to.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use object::{Object as _, ObjectSegment as _};

fn main() -> Result<(), String> {
    println!("cargo::rerun-if-changed=guest");
    println!("cargo::rerun-if-changed=src/guest");
    let variable = |name: &str| std::env::var(name).map_err(|_| format!("cargo did not set {name}"));
    if variable("CARGO_CFG_TARGET_ARCH")? != "x86_64" {
        return Err("the guest is written for x86_64".to_owned());
    }
    let package = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let folder = PathBuf::from(variable("OUT_DIR")?);
    let program = folder.join("guest");
    let script = package.join("guest/link.ld");
    let link = |argument: &str| format!("-Clink-arg={argument}");
    let mut rustc = Command::new(variable("RUSTC")?);
    rustc
        .args(["--edition=2024", "--crate-name=guest", "--crate-type=bin", "--target", &variable("TARGET")?])
        .args(["-Copt-level=3", "-Cpanic=abort", "-Cdebug-assertions=off", "-Coverflow-checks=off", "-Cdebuginfo=0"])
        .args(["-Ccodegen-units=1", "-Crelocation-model=static", "-Ccode-model=small", "-Ctarget-cpu=x86-64"])
        .args([link("-nostdlib"), link("-nostartfiles"), link("-static"), link("-no-pie")])
        .args([link(&format!("-Wl,-T,{}", script.display())), link("-Wl,--build-id=none")])
        .arg("-Alinker_messages")
        .arg("-o")
        .arg(&program)
        .arg(package.join("guest/main.rs"));
    let status = rustc.status().map_err(|error| format!("{rustc:?}: {error}"))?;
    if !status.success() {
        return Err(format!("the guest's program does not build: {rustc:?}"));
    }
    let image = flat(&program)?;
    fs::write(folder.join("guest.bin"), image).map_err(|error| format!("write the guest's program: {error}"))
}

/// The program as it lies in memory, from its first byte on. The linker does not do this: GNU's resolves calls by way of the global
/// offset table wrongly where it writes no ELF file.
fn flat(program: &Path) -> Result<Vec<u8>, String> {
    let wrong = |error: &dyn std::fmt::Display| format!("{}: {error}", program.display());
    let file = fs::read(program).map_err(|error| wrong(&error))?;
    let elf = object::File::parse(&*file).map_err(|error| wrong(&error))?;
    let first =
        elf.segments().map(|segment| segment.address()).min().ok_or_else(|| wrong(&"there is nothing in it"))?;
    let mut image = Vec::new();
    for segment in elf.segments() {
        let begin = (segment.address() - first) as usize;
        let data = segment.data().map_err(|error| wrong(&error))?;
        image.resize(image.len().max(begin + segment.size() as usize), 0);
        image[begin..begin + data.len()].copy_from_slice(data);
    }
    Ok(image)
}
