// SPDX-License-Identifier: Apache-2.0

//! A container: a namespace of a node, plugged in by the CNI plugin.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    rc::Rc,
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::{
    bed::SHARED,
    cni::{Attachment, Plug},
    node::Node,
    process::Outcome,
    shell::Shell,
};

/// A container of a pod.
pub struct Container {
    pod: String,
    attachment: Attachment,
    addresses: Vec<IpAddr>,
}

impl Container {
    /// Plugs in the container of `pod` (`namespace/name`) on `node`.
    ///
    /// # Errors
    /// The CNI plugin refused.
    pub fn new(node: &Rc<Node>, pod: &str) -> Result<Self> {
        Self::with_runtime_config(node, pod, &Value::Null)
    }

    /// As [`Container::new`], where the runtime hands this over below `runtimeConfig`.
    ///
    /// # Errors
    /// The CNI plugin refused.
    pub fn with_runtime_config(node: &Rc<Node>, pod: &str, config: &Value) -> Result<Self> {
        let mut attachment = Attachment::new(node, pod, Plug::Veth)?;
        if !config.is_null() {
            attachment.config["runtimeConfig"] = config.clone();
        }
        attachment.add()?;
        let addresses = attachment.addresses()?;
        Ok(Self { pod: pod.to_owned(), attachment, addresses })
    }

    /// What the runtime knows of it.
    #[must_use]
    pub fn attachment(&self) -> &Attachment {
        &self.attachment
    }

    /// Its IPv4 address.
    ///
    /// # Errors
    /// It has none.
    pub fn v4(&self) -> Result<IpAddr> {
        self.addresses.iter().copied().find(IpAddr::is_ipv4).context("no IPv4 address")
    }

    /// Its IPv6 address.
    ///
    /// # Errors
    /// It has none.
    pub fn v6(&self) -> Result<IpAddr> {
        self.addresses.iter().copied().find(IpAddr::is_ipv6).context("no IPv6 address")
    }

    /// Its addresses with `port`.
    #[must_use]
    pub fn sockets(&self, port: u16) -> Vec<SocketAddr> {
        self.addresses.iter().map(|address| SocketAddr::new(*address, port)).collect()
    }

    /// Its addresses.
    #[must_use]
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }
}

impl Shell for Container {
    fn label(&self) -> String {
        self.pod.clone()
    }

    fn folder(&self) -> String {
        let folder = format!("/run/{}", self.attachment.container_id);
        drop(self.attachment.node().sh(&format!("mkdir -p {folder}")));
        folder
    }

    fn sh(&self, script: &str) -> Result<Outcome> {
        let netns = Path::new(&self.attachment.netns);
        self.attachment.node().machine().sh(Some(netns), &format!("export PATH={SHARED}/bin:$PATH\n{script}"))
    }
}
