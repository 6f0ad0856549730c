// SPDX-License-Identifier: Apache-2.0

//! What an image says of itself.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::layout::Layer;
use crate::time::rfc3339;

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A processor architecture that images are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Platform {
    /// `x86_64`.
    Amd64,
}

impl Platform {
    /// The name that images give it, which is Go's.
    #[must_use]
    pub fn architecture(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
        }
    }

    /// The name that release archives give it, which is the kernel's.
    #[must_use]
    pub fn machine(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64",
        }
    }

    /// What rustc calls it, with the C library that programs are linked with.
    #[must_use]
    pub fn target(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-unknown-linux-gnu",
        }
    }

    pub(crate) fn descriptor(self) -> Value {
        json!({"architecture": self.architecture(), "os": "linux"})
    }
}

/// An image: layers, and how its program is started.
#[derive(Clone, Debug)]
pub struct Image {
    /// Full reference, `registry/name:tag`; it is no part of the image's digest.
    pub reference: String,
    /// What it runs on.
    pub platform: Platform,
    /// Layers, lowest first.
    pub layers: Vec<Layer>,
    /// The program that is always started, with its first arguments.
    pub entrypoint: Vec<String>,
    /// Arguments, or program and arguments without an entrypoint, unless others are given.
    pub command: Vec<String>,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// Annotations of the manifest, which the configuration has as labels: not all tools show both.
    pub annotations: BTreeMap<String, String>,
}

impl Image {
    /// The configuration, by the OCI image specification 1.1.
    pub(crate) fn configuration(&self) -> Value {
        let created = rfc3339(self.created);
        let layers: Vec<_> = self.layers.iter().map(|layer| layer.content.to_string()).collect();
        let history: Vec<_> =
            self.layers.iter().map(|_| json!({"created": created, "created_by": "weft-image"})).collect();
        let mut config = json!({
            "Entrypoint": self.entrypoint,
            "Cmd": self.command,
            "Env": [PATH],
            "WorkingDir": "/",
        });
        if !self.annotations.is_empty() {
            config["Labels"] = json!(self.annotations);
        }
        json!({
            "created": created,
            "architecture": self.platform.architecture(),
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": layers},
            "history": history,
        })
    }
}
