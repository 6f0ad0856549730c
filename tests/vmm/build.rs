// SPDX-License-Identifier: Apache-2.0
//! Builds the guest's program: `guest/main.rs`, linked flat at the address the guest has it.
//!
//! The guest is a freestanding program for the host's own target, so it needs no toolchain but the one that builds the
//! rest. It is always optimised, whatever the profile: it has no library to call, and a link error says if it tried to.

use std::path::PathBuf;
use std::process::Command;

fn main() -> Result<(), String> {
    println!("cargo::rerun-if-changed=guest");
    println!("cargo::rerun-if-changed=src/guest");
    let variable = |name: &str| std::env::var(name).map_err(|_| format!("cargo did not set {name}"));
    if variable("CARGO_CFG_TARGET_ARCH")? != "x86_64" {
        return Err("the guest is written for x86_64".to_owned());
    }
    let package = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let output = PathBuf::from(variable("OUT_DIR")?).join("guest.bin");
    let script = package.join("guest/link.ld");
    let link = |argument: &str| format!("-Clink-arg={argument}");
    let mut rustc = Command::new(variable("RUSTC")?);
    rustc
        .args(["--edition=2024", "--crate-name=guest", "--crate-type=bin", "--target", &variable("TARGET")?])
        .args(["-Copt-level=3", "-Cpanic=abort", "-Cdebug-assertions=off", "-Coverflow-checks=off", "-Cdebuginfo=0"])
        .args(["-Ccodegen-units=1", "-Crelocation-model=static", "-Ccode-model=small", "-Ctarget-cpu=x86-64"])
        .args([link("-nostdlib"), link("-nostartfiles"), link("-static"), link("-no-pie")])
        .args([link(&format!("-Wl,-T,{}", script.display())), link("-Wl,--build-id=none,--oformat=binary")])
        .arg("-Alinker_messages")
        .arg("-o")
        .arg(&output)
        .arg(package.join("guest/main.rs"));
    let status = rustc.status().map_err(|error| format!("{rustc:?}: {error}"))?;
    if !status.success() {
        return Err(format!("the guest's program does not build: {rustc:?}"));
    }
    Ok(())
}
