// SPDX-License-Identifier: Apache-2.0

//! The cluster's wire: a bridge in a namespace of its own, and on it the control plane and the nodes, each in a network
//! namespace with one interface `eth0` and addresses of both families.

use std::path::Path;

use anyhow::{Context, Result};

use super::command::{command, run};

/// One network namespace on the cluster's wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Short name, part of the namespace's name; a node's host name.
    pub name: &'static str,
    /// IPv4 address on the wire.
    pub v4: &'static str,
    /// IPv6 address on the wire.
    pub v6: &'static str,
}

/// The bridge's own namespace: the nodes' default gateway, and the place of a client outside of the cluster.
pub const OUTSIDE: Member = Member { name: "outside", v4: "172.30.0.254", v6: "fd00:30::fe" };
/// The namespace of etcd, the API server and the controllers.
pub const CONTROL_PLANE: Member = Member { name: "control", v4: "172.30.0.1", v6: "fd00:30::1" };
/// The nodes.
pub const NODES: [Member; 2] = [
    Member { name: "node1", v4: "172.30.0.11", v6: "fd00:30::11" },
    Member { name: "node2", v4: "172.30.0.12", v6: "fd00:30::12" },
];

const V4_PREFIX: u8 = 24;
const V6_PREFIX: u8 = 64;
const BRIDGE: &str = "wire";

/// Name of a member's network namespace.
#[must_use]
pub fn namespace(cluster: &str, member: &Member) -> String {
    format!("weft-{cluster}-{}", member.name)
}

/// Makes all namespaces and the wire between them.
///
/// # Errors
/// A namespace of that name exists already, or the kernel refuses a link or an address.
pub(crate) fn create(cluster: &str) -> Result<()> {
    create_outside(cluster)?;
    for member in [CONTROL_PLANE].iter().chain(&NODES) {
        create_member(cluster, member).with_context(|| format!("make the network of {}", member.name))?;
    }
    Ok(())
}

/// Removes the namespaces with all that is in them.
///
/// # Errors
/// `ip netns del` fails.
pub(crate) fn remove(cluster: &str) -> Result<()> {
    for member in [OUTSIDE, CONTROL_PLANE].iter().chain(&NODES) {
        let name = namespace(cluster, member);
        if Path::new("/run/netns").join(&name).exists() {
            run(&mut command("ip", ["netns", "del", &name]))?;
        }
    }
    Ok(())
}

/// Routes a node's pod addresses through the node's own address, seen from `from`.
///
/// # Errors
/// The kernel refuses the route.
pub(crate) fn route_pods(cluster: &str, from: &Member, node: &Member, pod_cidrs: &[String]) -> Result<()> {
    for cidr in pod_cidrs {
        let gateway = if cidr.contains(':') { node.v6 } else { node.v4 };
        ip(&namespace(cluster, from), &["route", "replace", cidr, "via", gateway])?;
    }
    Ok(())
}

fn create_outside(cluster: &str) -> Result<()> {
    let outside = namespace(cluster, &OUTSIDE);
    run(&mut command("ip", ["netns", "add", &outside]))?;
    ip(&outside, &["link", "set", "lo", "up"])?;
    ip(&outside, &["link", "add", BRIDGE, "type", "bridge", "stp_state", "0", "mcast_snooping", "0"])?;
    ip(&outside, &["link", "set", BRIDGE, "up"])?;
    add_addresses(&outside, BRIDGE, &OUTSIDE)
}

fn create_member(cluster: &str, member: &Member) -> Result<()> {
    let name = namespace(cluster, member);
    let outside = namespace(cluster, &OUTSIDE);
    run(&mut command("ip", ["netns", "add", &name]))?;
    ip(&name, &["link", "set", "lo", "up"])?;
    ip(&name, &["link", "add", "eth0", "type", "veth", "peer", "name", member.name, "netns", &outside])?;
    ip(&outside, &["link", "set", member.name, "master", BRIDGE, "up"])?;
    ip(&name, &["link", "set", "eth0", "up"])?;
    add_addresses(&name, "eth0", member)?;
    ip(&name, &["route", "add", "default", "via", OUTSIDE.v4])?;
    ip(&name, &["route", "add", "default", "via", OUTSIDE.v6])?;
    enable_forwarding(&name)
}

fn add_addresses(namespace: &str, link: &str, member: &Member) -> Result<()> {
    ip(namespace, &["address", "add", &format!("{}/{V4_PREFIX}", member.v4), "dev", link])?;
    ip(namespace, &["address", "add", &format!("{}/{V6_PREFIX}", member.v6), "dev", link, "nodad"])
}

/// Turns routing on, as Kubernetes asks of every node's administrator.
fn enable_forwarding(namespace: &str) -> Result<()> {
    let script = "echo 1 > /proc/sys/net/ipv4/ip_forward && echo 1 > /proc/sys/net/ipv6/conf/all/forwarding";
    run(&mut command("ip", ["netns", "exec", namespace, "sh", "-c", script]))
}

fn ip(namespace: &str, arguments: &[&str]) -> Result<()> {
    run(command("ip", ["-n", namespace]).args(arguments))
}
