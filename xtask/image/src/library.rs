// SPDX-License-Identifier: Apache-2.0

//! What a program needs besides itself.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Places in the header of a 64-bit little-endian ELF file: where program headers begin, how long one is, how many there are.
const PROGRAM_HEADERS: usize = 32;
const PROGRAM_HEADER_SIZE: usize = 54;
const PROGRAM_HEADER_COUNT: usize = 56;
/// Kind of the program header that names the dynamic linker.
const PT_INTERP: u32 = 3;

/// Whether the program at `path` asks for a dynamic linker, and so for libraries.
///
/// # Errors
/// The file cannot be read, or is no 64-bit little-endian ELF file.
pub fn is_dynamic(path: &Path) -> Result<bool> {
    let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    asks_for_linker(&bytes).with_context(|| format!("{} is no whole 64-bit little-endian ELF file", path.display()))
}

/// What the dynamic linker of this machine would load for the program at `path`, itself included.
///
/// # Errors
/// `ldd` fails, or a library is missing.
pub fn libraries(path: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(path).output().context("start ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "ldd {}: {}", path.display(), String::from_utf8_lossy(&output.stderr).trim());
    ensure!(!text.contains("not found"), "{} lacks libraries: {text}", path.display());
    Ok(text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}

fn asks_for_linker(bytes: &[u8]) -> Option<bool> {
    // Magic, 64 bits, little-endian.
    bytes.starts_with(b"\x7fELF\x02\x01").then_some(())?;
    let start = usize::try_from(u64::from_le_bytes(field(bytes, PROGRAM_HEADERS)?)).ok()?;
    let size = usize::from(u16::from_le_bytes(field(bytes, PROGRAM_HEADER_SIZE)?));
    let count = usize::from(u16::from_le_bytes(field(bytes, PROGRAM_HEADER_COUNT)?));
    for index in 0..count {
        if u32::from_le_bytes(field(bytes, start.checked_add(index * size)?)?) == PT_INTERP {
            return Some(true);
        }
    }
    Some(false)
}

fn field<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_of_the_machine_has_libraries_that_exist() {
        let shell = Path::new("/bin/sh");
        assert!(is_dynamic(shell).unwrap());
        let found = libraries(shell).unwrap();
        assert!(found.iter().any(|path| path.to_string_lossy().contains("libc.so")), "{found:?}");
        assert!(found.iter().all(|path| path.is_file()), "{found:?}");
    }

    #[test]
    fn what_is_no_program_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text");
        for content in ["#!/bin/sh\n", "\x7fELF\x02\x01"] {
            fs::write(&path, content).unwrap();
            assert!(is_dynamic(&path).is_err());
        }
    }
}
