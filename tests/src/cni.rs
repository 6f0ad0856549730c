// SPDX-License-Identifier: Apache-2.0

//! Plugging workloads in as a container runtime does: the real CNI plugin, its environment and its standard input.

use std::{fmt, net::IpAddr, rc::Rc, time::Duration};

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{bed::SHARED, node::Node, process::run, shell::Shell as _};

/// How a workload is plugged in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Plug {
    /// A veth pair.
    Veth,
    /// A tap of the host.
    Tap,
    /// A tap of the host with a vhost-user device on it.
    VhostUser,
}

/// The plugin's error answer: CNI spec 1.1.0, "Error".
#[derive(Clone, Debug, Deserialize)]
pub struct CniFailure {
    /// CNI's or Weft's number.
    pub code: u32,
    /// One sentence.
    pub msg: String,
    /// More of it.
    #[serde(default)]
    pub details: String,
}

impl fmt::Display for CniFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cni error {}: {} {}", self.code, self.msg, self.details)
    }
}

impl std::error::Error for CniFailure {}

/// One attachment: everything a runtime remembers of it.
pub struct Attachment {
    node: Rc<Node>,
    /// The network configuration.
    pub config: Value,
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_NETNS`.
    pub netns: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
    /// `CNI_ARGS`.
    pub args: String,
    /// What ADD answered.
    pub result: Option<Value>,
}

impl Attachment {
    /// An attachment of `pod` (`namespace/name`) that is not made yet, with a sandbox namespace of its own.
    ///
    /// # Errors
    /// The namespace cannot be made.
    pub fn new(node: &Rc<Node>, pod: &str, plug: Plug) -> Result<Self> {
        let (namespace, name) = pod.split_once('/').context("a pod's name is NAMESPACE/NAME")?;
        let container_id = format!("{name}-{}", node.next_plug());
        let script = format!("ip netns add {container_id} && ip -n {container_id} link set lo up");
        node.sh(&script)?.ok().context("make a sandbox")?;
        let port = match plug {
            Plug::Veth => "veth",
            Plug::Tap => "tap",
            Plug::VhostUser => "vhost-user",
        };
        Ok(Self {
            config: json!({
                "cniVersion": "1.1.0", "name": "weft", "type": "weft-cni", "port": port,
                "stateDir": node.file("state/attachments"), "pendingDir": node.file("state/pending-del"),
            }),
            netns: format!("/run/netns/{container_id}"),
            ifname: "eth0".to_owned(),
            args: format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name}"),
            container_id,
            node: Rc::clone(node),
            result: None,
        })
    }

    /// The node it is on.
    #[must_use]
    pub fn node(&self) -> &Rc<Node> {
        &self.node
    }

    /// Runs the plugin with `verb`.
    ///
    /// # Errors
    /// [`CniFailure`] where the plugin refused; anything else is a broken plugin.
    pub fn call(&self, verb: &str) -> Result<Value> {
        let (status, said, noise) = self.execute(verb, &["-k", "5", "60"])?;
        if status == 0 {
            let text = if said.trim().is_empty() { "null" } else { &said };
            return serde_json::from_str(text).with_context(|| format!("{verb} answered: {said}"));
        }
        let failure: CniFailure =
            serde_json::from_str(&said).with_context(|| format!("{verb} ended with {status}: {said}{noise}"))?;
        Err(failure.into())
    }

    /// Runs the plugin with `verb` and kills it after `limit`, as a runtime that goes down would; whether it ended by
    /// itself before, and well.
    ///
    /// # Errors
    /// It could not be started.
    pub fn call_and_kill(&self, verb: &str, limit: Duration) -> Result<bool> {
        let seconds = format!("{:.4}", limit.as_secs_f64());
        Ok(self.execute(verb, &["-s", "KILL", &seconds])?.0 == 0)
    }

    /// Runs the plugin under timeout(1) with `bounds`: its status and what it said on both outputs.
    fn execute(&self, verb: &str, bounds: &[&str]) -> Result<(i32, String, String)> {
        let mut config = self.config.clone();
        if let Some(result) = self.result.as_ref().filter(|_| ["CHECK", "DEL"].contains(&verb)) {
            config["prevResult"] = result.clone();
        }
        let mut command = self.node.machine().enter(None);
        command.arg("timeout").args(bounds).arg(format!("{SHARED}/bin/weft-cni")).env_clear().envs([
            ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", &self.container_id),
            ("CNI_NETNS", &self.netns),
            ("CNI_IFNAME", &self.ifname),
            ("CNI_ARGS", &self.args),
            ("CNI_PATH", &format!("{SHARED}/bin")),
        ]);
        let (status, output, errors) = run(command, config.to_string().as_bytes())?;
        Ok((status, String::from_utf8_lossy(&output).into_owned(), String::from_utf8_lossy(&errors).into_owned()))
    }

    /// ADD.
    ///
    /// # Errors
    /// As [`Attachment::call`].
    pub fn add(&mut self) -> Result<()> {
        self.result = Some(self.call("ADD").with_context(|| format!("ADD of {}", self.container_id))?);
        Ok(())
    }

    /// DEL.
    ///
    /// # Errors
    /// As [`Attachment::call`].
    pub fn del(&mut self) -> Result<()> {
        self.call("DEL").with_context(|| format!("DEL of {}", self.container_id))?;
        self.result = None;
        Ok(())
    }

    /// Addresses of the result.
    ///
    /// # Errors
    /// There is no result, or it has another form than CNI's.
    pub fn addresses(&self) -> Result<Vec<IpAddr>> {
        let result = self.result.as_ref().context("there is no result")?;
        let ips = result["ips"].as_array().with_context(|| format!("no ips in {result}"))?;
        ips.iter()
            .map(|ip| {
                let text = ip["address"].as_str().with_context(|| format!("no address in {ip}"))?;
                Ok(text.parse::<IpNet>()?.addr())
            })
            .collect()
    }

    /// An interface of the result: the sandbox's or guest's where `inside`, else the host's.
    ///
    /// # Errors
    /// There is none.
    pub fn interface(&self, inside: bool) -> Result<Value> {
        let result = self.result.as_ref().context("there is no result")?;
        let interfaces = result["interfaces"].as_array().with_context(|| format!("no interfaces in {result}"))?;
        let in_sandbox = |interface: &&Value| interface["sandbox"].as_str().is_some_and(|sandbox| !sandbox.is_empty());
        let found = interfaces.iter().find(|interface| in_sandbox(interface) == inside);
        found.cloned().with_context(|| format!("no such interface in {result}"))
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        if self.result.is_some()
            && let Err(error) = self.del()
        {
            eprintln!("{error:#}");
        }
        drop(self.node.sh(&format!("ip netns del {}", self.container_id)));
    }
}
