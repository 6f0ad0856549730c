// SPDX-License-Identifier: Apache-2.0
//! Whether a kube-proxy runs: it would write all back.

use std::{
    ffi::OsStr,
    fs,
    io::{self, Write as _},
    path::Path,
};

use anyhow::{Context as _, Result, bail};

const NAME: &str = "kube-proxy";

/// Refuses where a kube-proxy runs in this network namespace; with `go_on` it says so and no more.
///
/// # Errors
/// One runs, or /proc cannot be read.
pub(super) fn refuse(go_on: bool) -> Result<()> {
    let Some(process) = find(Path::new("/proc"))? else { return Ok(()) };
    let told = format!("process {process} is a kube-proxy of this network namespace and writes its rules again");
    if go_on {
        writeln!(io::stderr(), "weft: {told}")?;
        return Ok(());
    }
    bail!("{told}: end it first (delete the DaemonSet kube-proxy, or stop its unit), or go on with --force")
}

/// The number of one that runs beside `self` of `proc`.
fn find(proc: &Path) -> Result<Option<String>> {
    let own = fs::read_link(proc.join("self/ns/net")).context("read /proc/self/ns/net: mount /proc")?;
    for entry in fs::read_dir(proc).context("read /proc")? {
        let path = entry.context("read /proc")?.path();
        if is_kube_proxy(&path) && shares(&path, &own) {
            return Ok(path.file_name().map(|number| number.to_string_lossy().into_owned()));
        }
    }
    Ok(None)
}

/// By the name that the kernel has for it, or by its program's, which may have been replaced since.
fn is_kube_proxy(process: &Path) -> bool {
    let program = fs::read_link(process.join("exe")).unwrap_or_default();
    let program = program.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let number = process.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let is_process = number.bytes().all(|digit| digit.is_ascii_digit());
    let comm = || fs::read_to_string(process.join("comm")).unwrap_or_default();
    is_process && (program.strip_suffix(" (deleted)").unwrap_or(program) == NAME || comm().trim_end() == NAME)
}

/// One that is gone by now has no namespaces; one that may not be asked may be of this one.
fn shares(process: &Path, own: &Path) -> bool {
    match fs::read_link(process.join("ns/net")) {
        Ok(namespace) => namespace == own,
        Err(error) => error.kind() == io::ErrorKind::PermissionDenied,
    }
}
