// SPDX-License-Identifier: Apache-2.0

//! What tests of Services share: a Service with all kinds of frontends, and who is met there.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::{
    manifest::{service, set_node_port},
    node::Node,
    shell::{Protocol, Shell},
    wait::until_ok,
};

/// ClusterIPs of a Service.
pub const VIPS: [&str; 2] = ["10.96.0.10", "fd00:96::10"];
/// Addresses of a load balancer, beyond the cluster.
pub const LOAD_BALANCER: [&str; 2] = ["198.18.7.7", "2001:db8:18::7"];
/// NodePort of a Service.
pub const NODE_PORT: u16 = 30_080;
/// Where endpoints of a Service serve.
pub const SERVICE_PORT: u16 = 8080;

const SOON: Duration = Duration::from_secs(20);

/// A Service of type `LoadBalancer` with everything that such a one has.
#[must_use]
pub fn exposed(name: &str, vips: [&str; 2], node_port: u16, policy: &str) -> Value {
    let mut object = service(name, vips, 80, SERVICE_PORT, &[("app", name.trim_start_matches("default/"))]);
    object["spec"]["type"] = json!("LoadBalancer");
    object["spec"]["externalTrafficPolicy"] = json!(policy);
    set_node_port(&mut object, node_port);
    object
}

/// Where this node serves a NodePort, of IPv4 and of IPv6.
#[must_use]
pub fn node_ports(node: &Node, port: u16) -> [SocketAddr; 2] {
    [node.v4().into(), node.v6().into()].map(|address: IpAddr| SocketAddr::new(address, port))
}

/// [`exposed`] with addresses of a load balancer, one of which serves by itself.
#[must_use]
pub fn balanced(name: &str) -> Value {
    let mut object = exposed(name, VIPS, NODE_PORT, "Cluster");
    object["status"] = json!({"loadBalancer": {"ingress": [
        {"ip": LOAD_BALANCER[0]}, {"ip": LOAD_BALANCER[1]}, {"ip": "198.18.7.8", "ipMode": "Proxy"}]}});
    object
}

/// What a workload that reaches itself through a Service is seen as.
#[must_use]
pub const fn hairpin(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::new(169, 254, 119, 101)),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::new(0xfd77, 0x6566, 0x7400, 0, 0, 0, 0, 1)),
    }
}

/// `client` meets exactly these servers at `to`, each of which sees one of its addresses.
///
/// # Errors
/// It met another one or not all, or one saw another address.
pub fn meets(client: &dyn Shell, to: SocketAddr, wanted: &[(&str, &[IpAddr])]) -> Result<()> {
    let all: BTreeSet<&str> = wanted.iter().map(|(name, _)| *name).collect();
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let what = format!("{} meets {all:?} at {protocol} {to}", client.label());
        until_ok(&what, SOON, || client.ask(protocol, to).map(drop))?;
        let mut met = BTreeSet::new();
        for _ in 0..60 {
            let answer = client.ask(protocol, to).with_context(|| what.clone())?;
            let known = wanted.iter().find(|(name, _)| *name == answer.server);
            let (name, addresses) = known.with_context(|| format!("{what}: answered by {}", answer.server))?;
            let seen = answer.client;
            ensure!(addresses.contains(&seen), "{what}: {name} sees {seen} instead of one of {addresses:?}");
            met.insert(*name);
            if met == all {
                break;
            }
        }
        ensure!(met == all, "{what}: met {met:?}");
    }
    Ok(())
}

/// `client` is told, and soon, that nobody serves `to`.
///
/// # Errors
/// Somebody does, or it is told otherwise.
pub fn is_refused(client: &dyn Shell, to: SocketAddr) -> Result<()> {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        until_ok(&format!("{} is refused at {protocol} {to}", client.label()), SOON, || {
            let error = client.ask_within(protocol, to, Duration::from_secs(1)).err().context("answered")?;
            let why = format!("{error:#}");
            ensure!(why.ends_with("refused"), "{why}");
            Ok(())
        })?;
    }
    Ok(())
}
