// SPDX-License-Identifier: Apache-2.0

//! The crates whose code is in the programs, the embedded eBPF object included: neither build scripts' nor macros' nor tests'.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use weft_image::{PROGRAMS, Platform};

use crate::build;

/// The package of the eBPF programs and its target.
const EBPF: (&str, &str) = ("weft-ebpf", "bpfel-unknown-none");

/// A crate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Crate {
    pub(super) name: String,
    pub(super) version: String,
    /// SPDX expression.
    pub(super) licence: String,
    pub(super) repository: Option<String>,
    /// Where its sources are.
    pub(super) folder: PathBuf,
    /// SHA-256 of its file at the registry; Weft's own have none.
    pub(super) checksum: Option<String>,
    /// Name and version of the crates that it uses.
    pub(super) uses: BTreeSet<Key>,
}

/// Name and version.
pub(super) type Key = (String, String);

impl Crate {
    pub(super) fn key(&self) -> Key {
        (self.name.clone(), self.version.clone())
    }
}

/// What `cargo metadata` prints, as far as it is needed.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    repository: Option<String>,
    manifest_path: PathBuf,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<Kind>,
}

#[derive(Deserialize)]
struct Kind {
    /// None for an ordinary one.
    kind: Option<String>,
}

/// The linked crates of the workspace in `root`, sorted by name and version.
///
/// # Errors
/// Cargo fails, or a crate has no licence.
pub(super) fn linked(root: &Path, platform: Platform) -> Result<Vec<Crate>> {
    let mut keys = tree(root, &PROGRAMS, platform.target())?;
    keys.extend(tree(root, &[EBPF.0], EBPF.1)?);
    let metadata = cargo(root, &["metadata", "--format-version", "1", "--locked"])?;
    let metadata: Metadata = serde_json::from_str(&metadata).context("parse cargo's metadata")?;
    let lock = fs::read_to_string(root.join("Cargo.lock")).context("read Cargo.lock")?;
    select(metadata, &keys, &checksums(&lock))
}

/// Only the resolver knows which optional dependencies these programs alone have: metadata are of the whole workspace.
fn tree(root: &Path, packages: &[&str], target: &str) -> Result<BTreeSet<Key>> {
    let mut arguments = vec!["tree", "--locked", "--edges", "normal,no-proc-macro", "--target", target];
    arguments.extend(["--prefix", "none", "--no-dedupe", "--format", "{p}"]);
    for package in packages {
        arguments.extend(["--package", package]);
    }
    Ok(cargo(root, &arguments)?.lines().filter_map(package_of).collect())
}

/// `name v1.2.3 (where it is from)`.
fn package_of(line: &str) -> Option<Key> {
    let mut words = line.split_whitespace();
    let (name, version) = (words.next()?, words.next()?);
    Some((name.to_owned(), version.strip_prefix('v')?.to_owned()))
}

fn cargo(root: &Path, arguments: &[&str]) -> Result<String> {
    let mut command = build::cargo();
    let output = command.current_dir(root).args(arguments).output().context("start cargo")?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    String::from_utf8(output.stdout).context("cargo's output")
}

fn select(metadata: Metadata, keys: &BTreeSet<Key>, checksums: &BTreeMap<Key, String>) -> Result<Vec<Crate>> {
    let names: BTreeMap<_, _> = metadata.packages.iter().map(|package| (package.id.clone(), package.key())).collect();
    let nodes: BTreeMap<_, _> = metadata.resolve.nodes.iter().map(|node| (node.id.as_str(), node)).collect();
    let mut linked = BTreeMap::new();
    for package in metadata.packages.iter().filter(|package| keys.contains(&package.key())) {
        let uses = nodes.get(package.id.as_str()).into_iter().flat_map(|node| node.ordinary());
        let uses = uses.filter_map(|id| names.get(id)).filter(|key| keys.contains(*key)).cloned().collect();
        linked.insert(package.key(), package.with(uses, checksums.get(&package.key()))?);
    }
    let missing: Vec<_> = keys.iter().filter(|key| !linked.contains_key(*key)).collect();
    ensure!(missing.is_empty(), "cargo's metadata do not know {missing:?}");
    Ok(linked.into_values().collect())
}

impl Package {
    fn key(&self) -> Key {
        (self.name.clone(), self.version.clone())
    }

    fn with(&self, uses: BTreeSet<Key>, checksum: Option<&String>) -> Result<Crate> {
        let licence = self.license.as_ref().with_context(|| format!("{} {}: no licence", self.name, self.version))?;
        Ok(Crate {
            name: self.name.clone(),
            version: self.version.clone(),
            // Cargo's older way to write a choice.
            licence: licence.replace('/', " OR "),
            repository: self.repository.clone(),
            folder: self.manifest_path.parent().context("a manifest without a folder")?.to_owned(),
            checksum: checksum.cloned(),
            uses,
        })
    }
}

impl Node {
    fn ordinary(&self) -> impl Iterator<Item = &String> {
        let ordinary = |dependency: &&Dependency| dependency.dep_kinds.iter().any(|kind| kind.kind.is_none());
        self.deps.iter().filter(ordinary).map(|dependency| &dependency.pkg)
    }
}

/// Checksums of `Cargo.lock`, whose lines have one form.
pub(super) fn checksums(lock: &str) -> BTreeMap<Key, String> {
    let mut found = BTreeMap::new();
    for package in lock.split("[[package]]") {
        let field = |name: &str| {
            let line = package.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = "));
            line.map(|value| value.trim_matches('"').to_owned())
        };
        if let (Some(name), Some(version), Some(checksum)) = (field("name"), field("version"), field("checksum")) {
            found.insert((name, version), checksum);
        }
    }
    found
}
