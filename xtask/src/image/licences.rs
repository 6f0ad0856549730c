// SPDX-License-Identifier: Apache-2.0

//! The licences of what is linked: `THIRD-PARTY` names every crate and has every text once.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use super::crates::Crate;

/// How the names of files with licences begin, in capitals.
const NAMES: [&str; 6] = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE", "UNLICENSE"];
/// The licence that Weft's own `LICENSE` has the text of.
const OWN: &str = "Apache-2.0";

/// The text of `THIRD-PARTY` for `crates`.
///
/// # Errors
/// A crate's files cannot be read, or a crate has no text of its licence, and it is none that Weft has.
pub(super) fn third_party(crates: &[Crate]) -> Result<String> {
    let mut list = String::from(
        "What is linked into Weft's programs besides Weft, and its licences. Texts follow below the list.\n\n",
    );
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for linked in crates.iter().filter(|linked| linked.checksum.is_some()) {
        let name = format!("{} {}", linked.name, linked.version);
        let from = linked.repository.as_deref().map_or_else(String::new, |url| format!(" ({url})"));
        writeln!(list, "{name}: {}{from}", linked.licence)?;
        let files = files(&linked.folder)?;
        ensure!(
            !files.is_empty() || linked.licence.contains(OWN),
            "{name} comes without the text of its licence, {}",
            linked.licence
        );
        if files.is_empty() {
            writeln!(list, "    without a text of its own: {OWN}, see LICENSE")?;
        }
        for file in files {
            let bytes = fs::read(&file).with_context(|| format!("read {}", file.display()))?;
            texts.entry(plain(&String::from_utf8_lossy(&bytes))).or_default().push(name.clone());
        }
    }
    let mut texts: Vec<_> = texts.into_iter().map(|(text, names)| (names, text)).collect();
    texts.sort();
    for (mut names, text) in texts {
        names.dedup();
        write!(list, "\n{}\n{}\n\n{text}\n", "=".repeat(80), names.join(", "))?;
    }
    Ok(list)
}

/// Files with licences in the folder of a crate, sorted; those of a folder `LICENSES`, too.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let path = entry.with_context(|| format!("list {}", folder.display()))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
        if !NAMES.iter().any(|begin| name.starts_with(begin)) || name.ends_with(".RS") {
            continue;
        }
        if path.is_dir() {
            for entry in fs::read_dir(&path).with_context(|| format!("list {}", path.display()))? {
                found.push(entry.with_context(|| format!("list {}", path.display()))?.path());
            }
        } else {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Texts that differ in the ends of lines alone are one.
fn plain(text: &str) -> String {
    text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n").trim_matches('\n').to_owned()
}
