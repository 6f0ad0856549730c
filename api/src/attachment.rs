// SPDX-License-Identifier: Apache-2.0
//! What the CNI plugin and the agent say to each other about one attachment.

use std::{fmt, net::IpAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::Mac;

/// The key of an attachment: CNI spec 1.1.0, "CNI_CONTAINERID" and "CNI_IFNAME", within one network.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct AttachmentId {
    /// Name of the CNI network (`name` of the configuration).
    pub network: String,
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_IFNAME`: the interface's name in the sandbox, or for a tap the name by which the runtime asks for it.
    pub ifname: String,
}

impl AttachmentId {
    /// Name of the attachment's file, in the agent's store as among the plugin's records: `NETWORK.CONTAINER.IFNAME.json`, with
    /// the dots of each part as `%2E`, so that no two attachments share one. The parts must be valid: none has a `%`.
    #[must_use]
    pub fn file_name(&self) -> String {
        let [network, container, ifname] =
            [&self.network, &self.container_id, &self.ifname].map(|part| part.replace('.', "%2E"));
        format!("{network}.{container}.{ifname}.json")
    }
}

impl fmt::Display for AttachmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.network, self.container_id, self.ifname)
    }
}

/// How the workload is plugged in.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PortKind {
    /// A veth pair, one end in the sandbox.
    #[default]
    Veth,
    /// A persistent tap in the host namespace for a VMM to open.
    Tap,
    /// A tap whose other side is `weft-vhost`; the VMM gets a socket.
    VhostUser,
}

impl fmt::Display for PortKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Veth => "veth",
            Self::Tap => "tap",
            Self::VhostUser => "vhost-user",
        })
    }
}

/// The pod (or VM launcher pod) behind an attachment: `K8S_POD_*` of `CNI_ARGS`.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct PodRef {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID, where the runtime tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}

/// What an ADD asks for.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct AttachmentSpec {
    /// Which attachment.
    pub id: AttachmentId,
    /// Path of the sandbox's network namespace (`CNI_NETNS`); empty for a tap without a sandbox.
    pub netns: String,
    /// How to plug it in.
    pub port: PortKind,
    /// Whose it is; without one it is an anonymous workload that no selector matches.
    pub pod: Option<PodRef>,
    /// Static addresses asked for (`IP` of CNI_ARGS, or the `ips` capability): several per family of a
    /// veth, else one.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// Ethernet address asked for (`MAC` of CNI_ARGS, or the `mac` capability).
    #[serde(default)]
    pub mac: Option<Mac>,
    /// MTU asked for; the agent's own (uplink less encapsulation) where absent.
    #[serde(default)]
    pub mtu: Option<u32>,
    /// Queue pairs of a tap; 1 for a veth.
    #[serde(default = "one")]
    pub queues: u16,
    /// The user that may open the tap or connect to the vhost-user socket; root only where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<u32>,
    /// The group that may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<u32>,
    /// Ports of the host that lead to the workload (the `portMappings` capability).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_ports: Vec<HostPort>,
}

/// A port of the host that leads to a workload: CNI conventions, "portMappings"; `hostPort` of a Pod's container.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct HostPort {
    /// The host's address that has it; none: all of them, of the families that the workload has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// The host's port, not 0.
    pub port: u16,
    /// The workload's port, not 0.
    pub target: u16,
    /// Of which protocol.
    pub protocol: HostPortProtocol,
}

/// Protocols that a [`HostPort`] can have.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HostPortProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl HostPortProtocol {
    /// The number of IANA.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            HostPortProtocol::Tcp => "TCP",
            HostPortProtocol::Udp => "UDP",
            HostPortProtocol::Sctp => "SCTP",
        };
        match self.address {
            Some(address) => write!(f, "{}/{protocol}", std::net::SocketAddr::new(address, self.port)),
            None => write!(f, "{}/{protocol}", self.port),
        }
    }
}

fn one() -> u16 {
    1
}

/// One address given to an attachment.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct AssignedAddress {
    /// The address with its on-link prefix: /32 and /128 on a veth (everything is behind the gateway).
    pub address: IpNet,
    /// The next hop: an address of the node's pod CIDR for IPv4, a link-local address for IPv6. Weft answers ARP and
    /// neighbour solicitations for it with the one gateway MAC.
    pub gateway: IpAddr,
}

/// A route in the sandbox.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Route {
    /// Destination.
    pub dst: IpNet,
    /// Next hop; none for an on-link route.
    pub gateway: Option<IpAddr>,
}

/// Name service settings for guests (DHCP) and for the CNI result.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct DnsSettings {
    /// Servers.
    #[serde(default)]
    pub nameservers: Vec<IpAddr>,
    /// Search list.
    #[serde(default)]
    pub search: Vec<String>,
}

/// What an attachment was given.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Allocation {
    /// At most one address per family.
    pub addresses: Vec<AssignedAddress>,
    /// The workload's Ethernet address.
    pub mac: Mac,
    /// The Ethernet address of every gateway, the same on all nodes. The host's end of a veth and a tap must have it as
    /// their own address: frames that the workload sends to the gateway are then `PACKET_HOST` for the kernel, which
    /// `bpf_redirect_peer` passes on unchanged.
    pub gateway_mac: Mac,
    /// The name that the plugin must give the host's end (veth) or the tap.
    pub host_ifname: String,
    /// MTU of both ends.
    pub mtu: u32,
    /// Routes for the sandbox, in the order to add them (the on-link route to the gateway first).
    pub routes: Vec<Route>,
    /// Name service settings.
    pub dns: DnsSettings,
    /// The socket of a vhost-user port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket_path: Option<String>,
}

/// The link that the plugin made for an [`Allocation`].
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct PortLink {
    /// Index of the host's end or of the tap, in the host's namespace.
    pub ifindex: u32,
    /// Its name.
    pub ifname: String,
}

#[cfg(test)]
mod tests {
    use super::AttachmentId;

    #[test]
    fn no_two_attachments_share_a_file() {
        let name = |network: &str, container_id: &str, ifname: &str| {
            let [network, container_id, ifname] = [network, container_id, ifname].map(str::to_owned);
            AttachmentId { network, container_id, ifname }.file_name()
        };
        assert_eq!(name("weft", "c1", "eth0"), "weft.c1.eth0.json");
        assert_ne!(name("a.b", "c", "eth0"), name("a", "b.c", "eth0"));
        assert_ne!(name("a", "b", "c.d"), name("a", "b.c", "d"));
    }
}
