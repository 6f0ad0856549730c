// SPDX-License-Identifier: Apache-2.0
//! Builds the eBPF object that the loader embeds.
//!
//! Where the object comes from, first match:
//! 1. `WEFT_EBPF_OBJECT=FILE`: a prebuilt object.
//! 2. `WEFT_EBPF_RUSTC=RUSTC`: this compiler; its sysroot must have rust-src.
//! 3. rustup's nightly toolchain, if it has the rust-src component.
//! 4. `/usr/bin/rustc` (Debian's rustc-web), if rust-src is installed beside it.
//!
//! `core` is built from rust-src for the bpf target, so the compiler runs with `RUSTC_BOOTSTRAP=1`; `bpf-linker` must be in
//! PATH, and its LLVM must be at least as new as the compiler's.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail, ensure};

/// The package and the binary in it that become the object.
const PACKAGE: &str = "weft-ebpf";
const BINARY: &str = "weft-dataplane";
/// The binary with the baselines of benches; only with the feature `bench`.
const BENCH_BINARY: &str = "weft-bench";
const TARGET: &str = "bpfel-unknown-none";
/// Debian's compiler.
const SYSTEM_RUSTC: &str = "/usr/bin/rustc";
/// Everything the object depends on, relative to this package.
const SOURCES: [&str; 7] = [
    "../abi/Cargo.toml",
    "../abi/src",
    "../logic/Cargo.toml",
    "../logic/src",
    "../programs/Cargo.toml",
    "../programs/src",
    "../../Cargo.lock",
];

fn main() -> ExitCode {
    match embed() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Not `main`'s own result: anyhow would bury the sentence under a backtrace.
            println!("cargo::error={error:#}");
            ExitCode::FAILURE
        }
    }
}

fn embed() -> Result<()> {
    for variable in ["WEFT_EBPF_OBJECT", "WEFT_EBPF_RUSTC"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let out_dir = PathBuf::from(variable("OUT_DIR")?);
    let object = match set("WEFT_EBPF_OBJECT") {
        Some(path) => prebuilt(&path)?,
        None => build(&out_dir, BINARY)?,
    };
    embed_as(&object, &out_dir.join("weft-dataplane.o"))?;
    if env::var_os("CARGO_FEATURE_BENCH").is_some() {
        embed_as(&build(&out_dir, BENCH_BINARY)?, &out_dir.join("weft-bench.o"))?;
    }
    Ok(())
}

fn embed_as(object: &Path, embedded: &Path) -> Result<()> {
    fs::copy(object, embedded).with_context(|| format!("copy {} to {}", object.display(), embedded.display()))?;
    Ok(())
}

fn variable(name: &str) -> Result<OsString> {
    env::var_os(name).with_context(|| format!("{name} is not set: this file runs as cargo's build script"))
}

/// A path from the environment; an empty variable counts as unset.
fn set(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn prebuilt(path: &Path) -> Result<PathBuf> {
    println!("cargo::rerun-if-changed={}", path.display());
    ensure!(path.is_file(), "WEFT_EBPF_OBJECT={}: no such file", path.display());
    println!("cargo::warning=embedding the prebuilt eBPF object {} (WEFT_EBPF_OBJECT)", path.display());
    Ok(path.to_owned())
}

/// Runs a nested cargo, with its own target folder: the outer cargo holds the lock of the shared one.
fn build(out_dir: &Path, binary: &str) -> Result<PathBuf> {
    for source in SOURCES {
        println!("cargo::rerun-if-changed={source}");
    }
    let linker = find_linker()?;
    println!("cargo::rerun-if-changed={}", linker.display());
    let rustc = find_rustc()?;
    let target_dir = out_dir.join("ebpf-target");
    let mut cargo = Command::new(cargo_beside(&rustc)?);
    cargo
        .args(["build", "--release", "--package", PACKAGE, "--bin", binary, "--target", TARGET, "-Zbuild-std=core"])
        .arg("--target-dir")
        .arg(&target_dir)
        .args(env::var_os("CARGO_FEATURE_OTHER_LAYOUT").map(|_| "--features=other-layout"))
        .env("RUSTC", &rustc)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", [rust_flags()?, remapped_paths(&rustc)?].concat().join("\x1f"));
    for foreign in ["RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTFLAGS", "CARGO_BUILD_TARGET", "CARGO_TARGET_DIR"] {
        cargo.env_remove(foreign);
    }
    let status = cargo.status().with_context(|| format!("run {:?}", cargo.get_program()))?;
    ensure!(
        status.success(),
        "the eBPF programs did not build ({status}); compiler {}: its messages are above",
        rustc.display()
    );
    Ok(target_dir.join(TARGET).join("release").join(binary))
}

/// `v3` (kernel 5.1): 32-bit ALU and jumps, and atomics that return the old value. BTF comes from the debug information.
fn rust_flags() -> Result<Vec<String>> {
    let arch = env::var("CARGO_CFG_TARGET_ARCH").context("CARGO_CFG_TARGET_ARCH")?;
    Ok(vec![
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        // The linker would turn small copies and clears into calls of byte loops: some 1.5 ns a byte.
        "-Clink-arg=--disable-expand-memcpy-in-order".to_owned(),
        "-Ctarget-cpu=v3".to_owned(),
    ])
}

/// BTF names the source file of each instruction: without this, the object would tell where it was built, and another folder
/// would give other bytes.
fn remapped_paths(rustc: &Path) -> Result<Vec<String>> {
    let package = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let workspace = package.ancestors().nth(2).context("the package is not in the workspace")?;
    let cargo_home = set("CARGO_HOME").or_else(|| Some(set("HOME")?.join(".cargo")));
    let places = [cargo_home.map(|path| (path, "/cargo")), sysroot(rustc).map(|path| (path, "/rust"))];
    let places = places.into_iter().flatten().chain([(workspace.to_owned(), "/weft")]);
    Ok(places.map(|(path, name)| format!("--remap-path-prefix={}={name}", path.display())).collect())
}

fn find_linker() -> Result<PathBuf> {
    let path = variable("PATH")?;
    let Some(linker) = env::split_paths(&path).map(|dir| dir.join("bpf-linker")).find(|file| file.is_file()) else {
        bail!(
            "bpf-linker is not in PATH; install it with `cargo install bpf-linker --version 0.13.0 \
             --no-default-features --features llvm-22` (needs llvm-22-dev), or give a prebuilt object with WEFT_EBPF_OBJECT"
        );
    };
    Ok(linker)
}

fn find_rustc() -> Result<PathBuf> {
    if let Some(rustc) = set("WEFT_EBPF_RUSTC") {
        ensure!(
            has_rust_src(&rustc),
            "WEFT_EBPF_RUSTC={}: no such compiler, or no rust-src in its sysroot",
            rustc.display()
        );
        return Ok(rustc);
    }
    if let Some(rustc) = rustup_nightly().filter(|rustc| has_rust_src(rustc)) {
        return Ok(rustc);
    }
    let system = PathBuf::from(SYSTEM_RUSTC);
    if has_rust_src(&system) {
        return Ok(system);
    }
    bail!(
        "no compiler with rust-src for the eBPF programs; do one of: `rustup toolchain install nightly --component rust-src`; \
         `apt install rustc-web rust-web-src` (Debian); set WEFT_EBPF_RUSTC to such a compiler; \
         set WEFT_EBPF_OBJECT to a prebuilt object"
    )
}

/// The nightly compiler itself rather than rustup's proxy, which obeys `RUSTUP_TOOLCHAIN`.
fn rustup_nightly() -> Option<PathBuf> {
    let output = Command::new("rustup").args(["which", "--toolchain", "nightly", "rustc"]).output().ok()?;
    output.status.success().then(|| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

fn has_rust_src(rustc: &Path) -> bool {
    sysroot(rustc).is_some_and(|sysroot| sysroot.join("lib/rustlib/src/rust/library/core").is_dir())
}

fn sysroot(rustc: &Path) -> Option<PathBuf> {
    let output = Command::new(rustc).args(["--print", "sysroot"]).output().ok()?;
    output.status.success().then(|| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

/// The cargo that came with the compiler knows the layout of its rust-src.
fn cargo_beside(rustc: &Path) -> Result<OsString> {
    let sibling = rustc.with_file_name("cargo");
    if sibling.is_file() { Ok(sibling.into_os_string()) } else { variable("CARGO") }
}
