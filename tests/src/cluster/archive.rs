// SPDX-License-Identifier: Apache-2.0

//! Container image archives (`docker save` format) written without a registry and without a container engine.
//!
//! An archive is a tar file with `manifest.json`, one configuration per image, and the layers as plain tar files; see the
//! Docker image specification v1.2. containerd imports it with `ctr images import`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;

use super::command::{command, output, run};

/// One image of an archive.
pub(crate) struct Image<'a> {
    /// Full reference, `registry/name:tag`.
    pub(crate) reference: &'a str,
    /// Layer tar files in the archive's directory, lowest first.
    pub(crate) layers: Vec<&'a str>,
    pub(crate) entrypoint: Vec<&'a str>,
    pub(crate) command: Vec<&'a str>,
}

/// Writes `target` from the layer files in `directory`.
///
/// # Errors
/// A layer is missing, or `tar` or `sha256sum` fails.
pub(crate) fn write(directory: &Path, images: &[Image<'_>], target: &Path) -> Result<()> {
    let mut digests = BTreeMap::new();
    for layer in images.iter().flat_map(|image| &image.layers) {
        if !digests.contains_key(layer) {
            digests.insert(*layer, digest(&directory.join(layer))?);
        }
    }
    let mut manifest = Vec::new();
    for (index, image) in images.iter().enumerate() {
        let config = format!("config-{index}.json");
        write_json(&directory.join(&config), &configuration(image, &digests))?;
        manifest.push(json!({"Config": config, "RepoTags": [image.reference], "Layers": image.layers}));
    }
    write_json(&directory.join("manifest.json"), &json!(manifest))?;
    let mut tar = command("tar", ["--create", "--directory"]);
    tar.arg(directory).arg("--file").arg(target).arg("manifest.json");
    tar.args((0..images.len()).map(|index| format!("config-{index}.json"))).args(digests.keys());
    run(&mut tar)
}

/// Writes the layer `directory/name` from the tree at `root`, everything owned by root.
///
/// # Errors
/// `tar` fails.
pub(crate) fn write_layer(directory: &Path, name: &str, root: &Path) -> Result<()> {
    let mut tar =
        command("tar", ["--create", "--owner=0", "--group=0", "--numeric-owner", "--sort=name", "--mtime=@0"]);
    run(tar.arg("--directory").arg(root).arg("--file").arg(directory.join(name)).arg("."))
}

fn configuration(image: &Image<'_>, digests: &BTreeMap<&str, String>) -> serde_json::Value {
    let layers: Vec<_> = image.layers.iter().map(|layer| format!("sha256:{}", digests[layer])).collect();
    json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": {
            "Entrypoint": image.entrypoint,
            "Cmd": image.command,
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "WorkingDir": "/",
        },
        "rootfs": {"type": "layers", "diff_ids": layers},
    })
}

fn write_json(path: &Path, value: &serde_json::Value) -> Result<()> {
    fs::write(path, value.to_string()).with_context(|| format!("write {}", path.display()))
}

fn digest(file: &Path) -> Result<String> {
    let text = output(command("sha256sum", ["--binary"]).arg(file))?;
    text.split_whitespace().next().map(str::to_owned).context("sha256sum wrote no digest")
}
