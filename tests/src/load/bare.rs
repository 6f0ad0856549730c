// SPDX-License-Identifier: Apache-2.0

//! What Weft is compared with: a veth pair and a tap with an address each, and nothing else; and two machines joined by a third,
//! as pods are by their node.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::{
    bed::{Bed, SHARED},
    namespace::Namespace,
    process::{Outcome, run},
    shell::Shell,
    vm::Guest,
};

const LEFT: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const RIGHT: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);

/// Of the near ends of wires.
const NODE_MAC: &str = "02:00:5e:10:00:01";

/// Of the guest on the bare tap.
const MAC: &str = "02:00:5e:10:00:02";

/// How long a command in the guest may take.
const PATIENCE: Duration = Duration::from_secs(90);

/// A machine without Weft, with the programs of a bed in its path.
pub struct Machine(Namespace);

impl Machine {
    /// A machine that no wire leads to, beside those of `bed`.
    ///
    /// # Errors
    /// As [`Namespace::new`].
    pub fn new(bed: &Bed, name: &str) -> Result<Self> {
        Ok(Self(Namespace::new(name, Some(bed.switch()), "")?))
    }

    /// Its namespaces.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.0
    }
}

impl Shell for Machine {
    fn label(&self) -> String {
        self.0.name().to_owned()
    }

    fn folder(&self) -> String {
        "/run".to_owned()
    }

    fn sh(&self, script: &str) -> Result<Outcome> {
        self.0.sh(None, &format!("export PATH={SHARED}/bin:$PATH\n{script}"))
    }
}

/// Two machines with a veth pair between them.
pub struct BarePair {
    /// One end.
    pub left: Machine,
    /// The other.
    pub right: Machine,
}

impl BarePair {
    /// Makes both and the wire, whose MTU is `mtu`.
    ///
    /// # Errors
    /// A link could not be made.
    pub fn new(bed: &Bed, mtu: u32) -> Result<Self> {
        let pair = Self { left: Machine::new(bed, "left")?, right: Machine::new(bed, "right")? };
        pair.left.wire("eth0", &pair.right, mtu)?;
        for (machine, address) in [(&pair.left, LEFT), (&pair.right, RIGHT)] {
            machine.configure(address)?;
        }
        Ok(pair)
    }

    /// Where a server of the right machine is reached.
    #[must_use]
    pub fn right_socket(&self, port: u16) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(RIGHT), port)
    }
}

impl Machine {
    /// A veth pair from the device `name` here to `eth0` of `other`.
    pub(super) fn wire(&self, name: &str, other: &Self, mtu: u32) -> Result<()> {
        let script = format!(
            "ip link add {name} address {NODE_MAC} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}",
            other.0.init()
        );
        // Without the process namespace: the number of the other machine's process is this machine's.
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.0.proc("ns/net").display())).args(["--", "sh", "-ec", &script]);
        let (status, _, errors) = run(command, &[])?;
        let outcome = Outcome { status, output: String::from_utf8_lossy(&errors).into_owned() };
        outcome.ok().map(drop).context("make a veth pair")
    }

    fn configure(&self, address: Ipv4Addr) -> Result<()> {
        let script = format!("ip address add {address}/30 dev eth0 && ip link set eth0 up");
        self.sh(&script)?.ok().map(drop).with_context(|| format!("set up {}", self.label()))
    }
}

/// Two machines joined by a third, which has no address and forwards nothing by itself: what joins [`BareNode::PORTS`] does it.
pub struct BareNode {
    /// One end.
    pub left: Machine,
    /// The other.
    pub right: Machine,
    /// What is between them.
    pub node: Machine,
}

impl BareNode {
    /// The node's devices: to the left machine and to the right one.
    pub const PORTS: [&str; 2] = ["left0", "right0"];

    /// Makes the three and the wires, whose MTU is `mtu`. Both ends know each other by the node's Ethernet address, as pods do.
    ///
    /// # Errors
    /// A link could not be made.
    pub fn new(bed: &Bed, mtu: u32) -> Result<Self> {
        let [left, right, node] = ["left", "right", "between"].map(|name| Machine::new(bed, name));
        let bare = Self { left: left?, right: right?, node: node? };
        for (name, machine, address, other) in
            [(Self::PORTS[0], &bare.left, LEFT, RIGHT), (Self::PORTS[1], &bare.right, RIGHT, LEFT)]
        {
            bare.node.wire(name, machine, mtu)?;
            bare.node.sh(&format!("ip link set {name} up"))?.ok().context("set up the node")?;
            machine.configure(address)?;
            let script = format!("ip neighbour replace {other} lladdr {NODE_MAC} dev eth0 nud permanent");
            machine.sh(&script)?.ok().with_context(|| format!("set up {}", machine.label()))?;
        }
        Ok(bare)
    }

    /// Where a server of the right machine is reached.
    #[must_use]
    pub fn right_socket(&self, port: u16) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(RIGHT), port)
    }
}

/// A machine and a guest on its tap; both have an address, and nothing is in between.
pub struct BareTap {
    // Before the machine: QEMU ends before its namespaces do.
    guest: Guest,
    /// Where the tap is.
    pub host: Machine,
}

impl BareTap {
    /// Makes the tap and boots the guest.
    ///
    /// # Errors
    /// The guest does not boot.
    pub fn new(bed: &Bed) -> Result<Self> {
        let host = Machine::new(bed, "bare")?;
        let script = format!(
            "ip tuntap add dev tap0 mode tap vnet_hdr && ip address add {LEFT}/30 dev tap0 && ip link set tap0 up"
        );
        host.sh(&script)?.ok().context("make a tap")?;
        let probe = PathBuf::from(SHARED).join("bin/weft-probe");
        let guest = Guest::boot(host.namespace(), "bare-guest", "tap0", MAC, &host.namespace().path(probe))?;
        let script = format!("ip address add {RIGHT}/30 dev eth0 && ip link set eth0 up");
        guest.run(&script, PATIENCE)?.ok().context("the bare guest's network")?;
        Ok(Self { guest, host })
    }

    /// Where a server of the host is reached.
    #[must_use]
    pub fn host_socket(&self, port: u16) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(LEFT), port)
    }

    /// Where a server of the guest is reached.
    #[must_use]
    pub fn guest_socket(&self, port: u16) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(RIGHT), port)
    }
}

/// Scripts run in the guest.
impl Shell for BareTap {
    fn label(&self) -> String {
        "the bare guest".to_owned()
    }

    fn folder(&self) -> String {
        "/tmp".to_owned()
    }

    fn sh(&self, script: &str) -> Result<Outcome> {
        self.guest.run(script, PATIENCE)
    }
}
