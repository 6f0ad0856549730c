// SPDX-License-Identifier: Apache-2.0

//! A network behind another device of a node, as one for storage or for management.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result};

use crate::{
    bed::{Bed, SHARED, link},
    namespace::Namespace,
    node::Node,
    process::Outcome,
    shell::Shell,
};

/// A network that one node has a second device in, and the one machine on it, which knows no pod CIDR.
pub struct Network {
    machine: Namespace,
}

impl Network {
    /// The node's IPv4 address in it.
    pub const NODE_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
    /// The machine's.
    pub const V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
    /// The node's IPv6 address in it.
    pub const NODE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 1);
    /// The machine's.
    pub const V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 2);

    /// Plugs device `iface` of `node`, which is new, into a new network called `name`.
    ///
    /// # Errors
    /// The node has such a device.
    pub fn new(bed: &Bed, node: &Node, iface: &str, name: &str) -> Result<Self> {
        let network = Self { machine: Namespace::new(name, Some(bed.switch()), "")? };
        let addresses = |v4: Ipv4Addr, v6: Ipv6Addr, device: &str| {
            format!(
                "ip address add {v4}/24 dev {device}
                 ip address add {v6}/64 dev {device} nodad
                 ip link set {device} up"
            )
        };
        link(node.machine(), iface, &network.machine, &addresses(Self::NODE_V4, Self::NODE_V6, iface))?;
        let script = format!("set -e\n{}", addresses(Self::V4, Self::V6, "eth0"));
        network.sh(&script)?.ok().with_context(|| format!("set up {name}"))?;
        Ok(network)
    }

    /// Its namespaces.
    #[must_use]
    pub fn machine(&self) -> &Namespace {
        &self.machine
    }

    /// The machine's address of the family of `peer`.
    #[must_use]
    pub fn address_for(peer: IpAddr) -> IpAddr {
        if peer.is_ipv4() { Self::V4.into() } else { Self::V6.into() }
    }

    /// The node's address in it, of the family of `peer`.
    #[must_use]
    pub fn node_address_for(peer: IpAddr) -> IpAddr {
        if peer.is_ipv4() { Self::NODE_V4.into() } else { Self::NODE_V6.into() }
    }
}

impl Shell for Network {
    fn label(&self) -> String {
        self.machine.name().to_owned()
    }

    fn folder(&self) -> String {
        "/run".to_owned()
    }

    fn sh(&self, script: &str) -> Result<Outcome> {
        self.machine.sh(None, &format!("export PATH={SHARED}/bin:$PATH\n{script}"))
    }
}
