// SPDX-License-Identifier: Apache-2.0

//! Ports of the host: `hostPort` of Pods, and what the host's own sockets find at the host's addresses.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Result, bail, ensure};
use serde_json::json;
use weft_testbed::{Bed, Mode, Options, Protocol, Shell, service, set_node_port, until_ok};

const SOON: Duration = Duration::from_secs(20);
const BOTH: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];
const HOST_PORT: u16 = 8088;
const NODE_PORT: u16 = 30_080;
const PORT: u16 = 8080;
const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// `client` is answered at `to` by `server`, which sees it as one of `seen`; none: whatever.
fn meets(client: &dyn Shell, protocol: Protocol, to: SocketAddr, server: &str, seen: &[IpAddr]) -> Result<()> {
    until_ok(&format!("{} meets {server} at {protocol} {to}", client.label()), SOON, || {
        let answer = client.ask(protocol, to)?;
        ensure!(answer.server == server, "answered by {}", answer.server);
        ensure!(seen.is_empty() || seen.contains(&answer.client), "seen as {}, not as {seen:?}", answer.client);
        Ok(())
    })
}

fn mapping(host_ip: &str, protocol: &str) -> serde_json::Value {
    json!({"hostPort": HOST_PORT, "containerPort": PORT, "protocol": protocol, "hostIP": host_ip})
}

/// From outside, another node, pods of both nodes, the host itself by each of its names, and the pod that has it.
#[test]
fn a_host_port_leads_to_its_pod_from_everywhere_and_goes_with_it() -> Result<()> {
    for mode in [Mode::Vxlan, Mode::Native] {
        let bed = Bed::with(&Options { mode, ..Options::default() })?;
        let (first, second) = (bed.node(1), bed.node(2));
        let web = bed.container_with_ports(1, "default/web", &json!([mapping("", "tcp"), mapping("", "udp")]))?;
        web.serve("web", PORT)?;
        let (pod, far) = (bed.container(1, "default/pod", &[])?, bed.container(2, "default/far", &[])?);
        for (own, loopback) in [IpAddr::from(first.v4()), first.v6().into()].into_iter().zip(LOOPBACK) {
            let (to, at_loopback) = (SocketAddr::new(own, HOST_PORT), SocketAddr::new(loopback, HOST_PORT));
            for protocol in BOTH {
                meets(bed.outside(), protocol, to, "web", &[bed.outside().address_for(own)])?;
                meets(&**second, protocol, to, "web", &[second.address_for(own)])?;
                meets(&pod, protocol, to, "web", pod.addresses())?;
                meets(&far, protocol, to, "web", &[])?;
                meets(&web, protocol, to, "web", &[])?;
                meets(&**first, protocol, to, "web", &[own])?;
                meets(&**first, protocol, at_loopback, "web", &[own])?;
                ensure!(far.ask(protocol, at_loopback).is_err(), "another one's loopback");
                ensure!(pod.ask(protocol, at_loopback).is_err(), "a pod's loopback");
            }
        }
        drop(web.attachment().call("DEL")?);
        for protocol in BOTH {
            let to = SocketAddr::new(IpAddr::from(first.v4()), HOST_PORT);
            until_ok("the port is the host's again", SOON, || {
                let (own, others) = (first.ask(protocol, to), bed.outside().ask(protocol, to));
                ensure!(own.is_err() && others.is_err(), "somebody answers");
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// As upstream's test has it: one port at three places.
#[test]
fn address_and_protocol_tell_host_ports_apart() -> Result<()> {
    let bed = Bed::new()?;
    let first = bed.node(1);
    let own = first.v4();
    let pods = [
        ("default/loopback", json!([mapping("127.0.0.1", "TCP")])),
        ("default/tcp", json!([mapping(&own.to_string(), "TCP")])),
        ("default/udp", json!([mapping(&own.to_string(), "UDP")])),
    ];
    let pods = pods.map(|(name, mappings)| bed.container_with_ports(1, name, &mappings));
    for (pod, name) in pods.iter().zip(["loopback", "tcp", "udp"]) {
        let pod = pod.as_ref().map_err(|error| anyhow::anyhow!("{error:#}"))?;
        pod.serve(name, PORT)?;
    }
    let at = |address: IpAddr| SocketAddr::new(address, HOST_PORT);
    meets(&**first, Protocol::Tcp, at(LOOPBACK[0]), "loopback", &[])?;
    meets(&**first, Protocol::Tcp, at(own.into()), "tcp", &[])?;
    meets(&**first, Protocol::Udp, at(own.into()), "udp", &[])?;
    meets(bed.outside(), Protocol::Tcp, at(own.into()), "tcp", &[])?;
    meets(bed.outside(), Protocol::Udp, at(own.into()), "udp", &[])?;
    ensure!(first.ask(Protocol::Udp, at(LOOPBACK[0])).is_err(), "nobody has it");
    Ok(())
}

/// Processes of the host reach NodePorts at the host's own addresses, whichever node has the backends; who has nobody behind is refused.
#[test]
fn the_host_reaches_node_ports_at_its_own_addresses() -> Result<()> {
    for mode in [Mode::Vxlan, Mode::Native] {
        let bed = Bed::with(&Options { mode, ..Options::default() })?;
        let mut object = service("default/web", ["10.96.0.10", "fd00:96::10"], 80, PORT, &[("app", "web")]);
        object["spec"]["type"] = json!("NodePort");
        set_node_port(&mut object, NODE_PORT);
        bed.apply(&object)?;
        let web = bed.container(1, "default/web", &[("app", "web")])?;
        web.serve("web", PORT)?;
        for node in [bed.node(1), bed.node(2)] {
            for (own, loopback) in [IpAddr::from(node.v4()), node.v6().into()].into_iter().zip(LOOPBACK) {
                for protocol in BOTH {
                    meets(&**node, protocol, SocketAddr::new(own, NODE_PORT), "web", &[own])?;
                    meets(&**node, protocol, SocketAddr::new(loopback, NODE_PORT), "web", &[own])?;
                }
            }
        }
        drop(web.attachment().call("DEL")?);
        bed.delete(&weft_testbed::pod("default/web", bed.node(1).name(), &[("app", "web")]))?;
        for loopback in LOOPBACK {
            until_ok("the host is refused", SOON, || {
                let answer = bed.node(1).ask(Protocol::Tcp, SocketAddr::new(loopback, NODE_PORT));
                let Err(error) = answer else { bail!("somebody answers") };
                let why = format!("{error:#}");
                ensure!(why.trim_end().ends_with("refused"), "{why}");
                Ok(())
            })?;
        }
    }
    Ok(())
}
