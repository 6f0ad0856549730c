// SPDX-License-Identifier: Apache-2.0

//! Tar files (POSIX.1-1988 `ustar`) of a [`Tree`], and gzip around them, that depend on nothing but what is given.

use std::fs::File;
use std::io::{self, Read, Write};

use anyhow::{Context, Result, ensure};
use flate2::{Compression, GzBuilder, write::GzEncoder};

use crate::tree::{Content, Entry, Source, Tree};

const BLOCK: usize = 512;
/// Bytes of a name, of what may stand before it, and of a link's target.
const NAME: usize = 100;
const PREFIX: usize = 155;
/// RFC 1952: the system on which it was made is not known.
const UNKNOWN_SYSTEM: u8 = 255;

/// Writes `tree` as a tar file to `output`: everything belongs to 0:0 and was modified at `modified`, in seconds since 1970.
///
/// # Errors
/// A file cannot be read, changes meanwhile, or something has a name or a size that the format cannot tell.
pub(crate) fn write_tar<W: Write>(tree: &Tree, modified: u64, output: &mut W) -> Result<()> {
    for (path, entry) in tree.entries() {
        write_entry(path, entry, modified, output).with_context(|| format!("write {path}"))?;
    }
    output.write_all(&[0; 2 * BLOCK]).context("write the end")
}

/// Writes `tree` as [`write_tar`] does, compressed.
///
/// # Errors
/// As it.
pub fn write_gzip<W: Write>(tree: &Tree, modified: u64, output: W) -> Result<()> {
    let mut encoder = gzip(output);
    write_tar(tree, modified, &mut encoder)?;
    encoder.finish().context("end the compressed file")?.flush().context("flush the compressed file")
}

/// A compressor whose header has neither time, name nor system.
pub(crate) fn gzip<W: Write>(output: W) -> GzEncoder<W> {
    GzBuilder::new().mtime(0).operating_system(UNKNOWN_SYSTEM).write(output, Compression::best())
}

fn write_entry(path: &str, entry: &Entry, modified: u64, output: &mut impl Write) -> Result<()> {
    let folder = format!("{path}/");
    let mut header = Header { path, kind: b'0', mode: entry.mode, size: 0, modified, target: "" };
    match &entry.content {
        Content::Folder => Header { path: &folder, kind: b'5', ..header }.write(output),
        Content::Link(target) => Header { kind: b'2', mode: 0o777, target, ..header }.write(output),
        Content::File(Source::Bytes(bytes)) => {
            header.size = bytes.len() as u64;
            header.write(output)?;
            body(&mut bytes.as_slice(), header.size, output)
        }
        Content::File(Source::File(file)) => {
            let mut open = File::open(file).with_context(|| format!("open {}", file.display()))?;
            header.size = open.metadata().with_context(|| format!("look at {}", file.display()))?.len();
            header.write(output)?;
            body(&mut open, header.size, output)
        }
    }
}

/// The bytes, and zeros up to the next whole block.
fn body(input: &mut impl Read, size: u64, output: &mut impl Write) -> Result<()> {
    let copied = io::copy(&mut input.take(size), output)?;
    ensure!(copied == size, "the file has shrunk from {size} to {copied} bytes");
    let rest = usize::try_from(size % BLOCK as u64)?;
    Ok(output.write_all(&[0; BLOCK][..(BLOCK - rest) % BLOCK])?)
}

/// What stands before each entry.
struct Header<'a> {
    path: &'a str,
    /// `0` for a file, `2` for a link, `5` for a folder.
    kind: u8,
    mode: u32,
    size: u64,
    modified: u64,
    /// Of a link.
    target: &'a str,
}

impl Header<'_> {
    fn write(&self, output: &mut impl Write) -> Result<()> {
        let mut block = [0; BLOCK];
        let (prefix, name) = split(self.path)?;
        ensure!(self.target.len() <= NAME, "the link's target is longer than {NAME} bytes");
        put(&mut block, 0, name.as_bytes());
        put(&mut block, 100, &octal(self.mode.into(), 7)?);
        put(&mut block, 108, &octal(0, 7)?);
        put(&mut block, 116, &octal(0, 7)?);
        put(&mut block, 124, &octal(self.size, 11)?);
        put(&mut block, 136, &octal(self.modified, 11)?);
        // The sum is taken with spaces in its own place.
        put(&mut block, 148, b"        ");
        block[156] = self.kind;
        put(&mut block, 157, self.target.as_bytes());
        put(&mut block, 257, b"ustar\x0000");
        put(&mut block, 345, prefix.as_bytes());
        let sum = block.iter().map(|byte| u64::from(*byte)).sum();
        put(&mut block, 148, &octal(sum, 6)?);
        block[154] = 0;
        Ok(output.write_all(&block)?)
    }
}

fn put(block: &mut [u8; BLOCK], offset: usize, bytes: &[u8]) {
    block[offset..offset + bytes.len()].copy_from_slice(bytes);
}

/// `value` in `digits` octal digits; the byte behind them stays 0.
fn octal(value: u64, digits: usize) -> Result<Vec<u8>> {
    let text = format!("{value:0digits$o}");
    ensure!(text.len() == digits, "{value} does not fit {digits} octal digits");
    Ok(text.into_bytes())
}

/// A path that is too long for the name is cut at a `/`.
fn split(path: &str) -> Result<(&str, &str)> {
    if path.len() <= NAME {
        return Ok(("", path));
    }
    let cut = path.match_indices('/').find(|(at, _)| *at <= PREFIX && path.len() - at - 1 <= NAME);
    let (at, _) = cut.filter(|(at, _)| at + 1 < path.len()).context("the path is too long for a tar file")?;
    Ok((&path[..at], &path[at + 1..]))
}

#[cfg(test)]
#[path = "archive_tests.rs"]
mod tests;
