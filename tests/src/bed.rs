// SPDX-License-Identifier: Apache-2.0

//! A whole simulated site: a switch, nodes on it, the outside, and the folder of manifests that the agents share.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    process::Command,
    rc::Rc,
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::{
    binaries::Binaries,
    cni::Plug,
    container::Container,
    manifest,
    namespace::Namespace,
    node::{Mode, Node},
    process::{Outcome, run},
    shell::Shell,
    vm::Vm,
};

/// The folder that all machines of a bed share, inside; volatile.
pub(crate) const SHARED: &str = "/mnt";

/// An IPv4 address beyond the nodes' own network, which knows no pod CIDR.
pub const OUTSIDE_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
/// An IPv6 address of the same kind.
pub const OUTSIDE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x77, 0, 0, 0, 0, 0x10);

/// Service CIDRs of every bed.
pub(crate) const SERVICE_CIDRS: [&str; 2] = ["10.96.0.0/16", "fd00:96::/112"];

/// What kind of site.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many nodes.
    pub nodes: u8,
    /// How they reach each other's pods.
    pub mode: Mode,
    /// Keys of every agent's configuration beside those of the bed; `null` takes one of the bed's out.
    pub config: Value,
}

impl Default for Options {
    fn default() -> Self {
        Self { nodes: 2, mode: Mode::Vxlan, config: Value::Null }
    }
}

/// A simulated site.
pub struct Bed {
    nodes: Vec<Rc<Node>>,
    outside: Outside,
    switch: Namespace,
    shared: PathBuf,
}

impl Bed {
    /// Two nodes joined by VXLAN.
    ///
    /// # Errors
    /// As [`Bed::with`].
    pub fn new() -> Result<Self> {
        Self::with(&Options::default())
    }

    /// Makes the site and starts its agents; they are ready, and know each other, when this returns.
    ///
    /// # Errors
    /// Not root, a program is missing, or an agent does not become ready: the message has its log.
    pub fn with(options: &Options) -> Result<Self> {
        Self::of(options, &Binaries::locate()?)
    }

    /// Makes the site of the programs given and starts its agents; they are ready when this returns.
    ///
    /// # Errors
    /// As [`Bed::with`].
    pub fn of(options: &Options, binaries: &Binaries) -> Result<Self> {
        let bed = Self::idle(options, binaries)?;
        for node in &bed.nodes {
            node.start_agent()?;
        }
        for node in &bed.nodes {
            node.agent_ready()?;
        }
        for node in &bed.nodes {
            node.agent_knows(bed.nodes.len() - 1)?;
        }
        Ok(bed)
    }

    /// Makes the site of the programs given; its agents do not run yet.
    ///
    /// # Errors
    /// Not root, or a program is missing.
    pub fn idle(options: &Options, binaries: &Binaries) -> Result<Self> {
        let switch = Namespace::new("switch", None, &switch_script(binaries))?;
        let outside = Outside { machine: Namespace::new("outside", Some(&switch), "")? };
        connect(&switch, &outside.machine, "outside")?;
        outside.sh(&outside_script())?.ok().context("set up the outside")?;
        let mut nodes = Vec::new();
        for number in 1..=options.nodes {
            let machine = Namespace::new(&format!("node{number}"), Some(&switch), "")?;
            connect(&switch, &machine, &format!("node{number}"))?;
            nodes.push(Rc::new(Node::new(machine, number, options)?));
        }
        let shared = switch.path(SHARED);
        Ok(Self { nodes, outside, switch, shared })
    }

    /// Node `number`, from 1.
    ///
    /// # Panics
    /// There is none.
    #[must_use]
    pub fn node(&self, number: usize) -> &Rc<Node> {
        &self.nodes[number - 1]
    }

    /// All nodes.
    #[must_use]
    pub fn nodes(&self) -> &[Rc<Node>] {
        &self.nodes
    }

    /// What is beyond the nodes' network.
    #[must_use]
    pub fn outside(&self) -> &Outside {
        &self.outside
    }

    /// Puts an object into the manifests' folder, or replaces it, atomically.
    ///
    /// # Errors
    /// The object has no kind or name, or the folder cannot be written.
    pub fn apply(&self, object: &Value) -> Result<()> {
        self.place(&manifest::file_name(object)?, &serde_yaml::to_string(object)?)
    }

    /// Puts a file into the manifests' folder, or replaces it, atomically.
    pub(crate) fn place(&self, name: &str, text: &str) -> Result<()> {
        let staged = self.shared.join(name);
        fs::write(&staged, text).context("write a manifest")?;
        fs::rename(&staged, self.shared.join("manifests").join(name)).context("place a manifest")
    }

    /// Takes an object out of the manifests' folder.
    ///
    /// # Errors
    /// It is not there.
    pub fn delete(&self, object: &Value) -> Result<()> {
        let path = self.shared.join("manifests").join(manifest::file_name(object)?);
        fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))
    }

    /// Makes a Pod `namespace/name` with `labels` on node `number` and plugs its container in.
    ///
    /// # Errors
    /// The CNI plugin refused.
    pub fn container(&self, number: usize, pod: &str, labels: &[(&str, &str)]) -> Result<Container> {
        self.apply(&manifest::pod(pod, self.node(number).name(), labels))?;
        Container::new(self.node(number), pod)
    }

    /// As [`Bed::container`], with these `portMappings` of the runtime.
    ///
    /// # Errors
    /// The CNI plugin refused.
    pub fn container_with_ports(&self, number: usize, pod: &str, mappings: &Value) -> Result<Container> {
        self.apply(&manifest::pod(pod, self.node(number).name(), &[]))?;
        let config = json!({"portMappings": mappings});
        Container::with_runtime_config(self.node(number), pod, &config)
    }

    /// Makes a Pod `namespace/name` with `labels` on node `number` and boots a guest as its workload.
    ///
    /// # Errors
    /// The CNI plugin refused, or the guest does not boot or get its addresses.
    pub fn vm(&self, number: usize, pod: &str, labels: &[(&str, &str)]) -> Result<Vm> {
        self.apply(&manifest::pod(pod, self.node(number).name(), labels))?;
        Vm::new(self.node(number), pod)
    }

    /// As [`Bed::vm`], with the guest on a vhost-user port.
    ///
    /// # Errors
    /// As [`Bed::vm`].
    pub fn vhost_vm(&self, number: usize, pod: &str, labels: &[(&str, &str)]) -> Result<Vm> {
        self.apply(&manifest::pod(pod, self.node(number).name(), labels))?;
        Vm::on(self.node(number), pod, Plug::VhostUser)
    }
}

fn switch_script(binaries: &Binaries) -> String {
    let links = [(&binaries.agent, "weft-agent"), (&binaries.cni, "weft-cni"), (&binaries.cli, "weft")]
        .map(|(path, name)| format!("ln -s {} {SHARED}/bin/{name}", path.display()))
        .join("\n");
    format!(
        "mount -t tmpfs bed {SHARED}
         mkdir {SHARED}/manifests {SHARED}/bin
         cp {} {SHARED}/bin/weft-probe
         {links}
         ip link add br0 type bridge mcast_snooping 0 forward_delay 0
         ip link set br0 up",
        binaries.probe.display()
    )
}

/// Plugs `machine` into the switch; its side is called `eth0`.
pub(crate) fn connect(switch: &Namespace, machine: &Namespace, port: &str) -> Result<()> {
    link(switch, port, machine, &format!("ip link set {port} master br0 up"))
}

/// A wire from a new device `port` of `from` to `eth0` of `machine`; then `script` runs in the network of `from`.
pub(crate) fn link(from: &Namespace, port: &str, machine: &Namespace, script: &str) -> Result<()> {
    let script = format!("ip link add {port} type veth peer name eth0 netns {}\n{script}", machine.init());
    // Without the process namespace of `from`: the number of the other machine's process is this machine's.
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", from.proc("ns/net").display())).args(["--", "sh", "-ec", &script]);
    let (status, _, errors) = run(command, &[])?;
    Outcome { status, output: String::from_utf8_lossy(&errors).into_owned() }
        .ok()
        .map(drop)
        .with_context(|| format!("connect {} to {}", machine.name(), from.name()))
}

// The routes name the source: a server that is bound to every address answers from the one it was asked at.
fn outside_script() -> String {
    format!(
        "set -e
         ip address add {OUTSIDE_V4}/32 dev lo
         ip address add {OUTSIDE_V6}/128 dev lo nodad
         ip address add {}/24 dev eth0
         ip address add {}/64 dev eth0 nodad
         ip link set eth0 up
         ip route replace 192.168.119.0/24 dev eth0 src {OUTSIDE_V4}
         ip route replace fd00:119::/64 dev eth0 metric 256 src {OUTSIDE_V6}",
        Outside::GATEWAY_V4,
        Outside::GATEWAY_V6,
    )
}

/// The machine beyond: the nodes' router, with one address outside of every known range per family.
pub struct Outside {
    machine: Namespace,
}

impl Outside {
    /// The nodes' IPv4 router.
    pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(192, 168, 119, 254);
    /// The nodes' IPv6 router.
    pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x119, 0, 0, 0, 0, 0, 0xfe);

    /// Its namespaces.
    #[must_use]
    pub fn machine(&self) -> &Namespace {
        &self.machine
    }

    /// Its address of the family of `peer`.
    #[must_use]
    pub fn address_for(&self, peer: IpAddr) -> IpAddr {
        if peer.is_ipv4() { OUTSIDE_V4.into() } else { OUTSIDE_V6.into() }
    }
}

impl Shell for Outside {
    fn label(&self) -> String {
        "outside".to_owned()
    }

    fn folder(&self) -> String {
        "/run".to_owned()
    }

    fn sh(&self, script: &str) -> Result<Outcome> {
        self.machine.sh(None, &format!("export PATH={SHARED}/bin:$PATH\n{script}"))
    }
}

impl Bed {
    /// The switch, to look at what is on the wire.
    #[must_use]
    pub fn switch(&self) -> &Namespace {
        &self.switch
    }
}
