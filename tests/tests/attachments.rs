// SPDX-License-Identifier: Apache-2.0

//! CNI as a runtime uses it, against a real agent.

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use weft_testbed::{Attachment, Bed, CniFailure, Node, Options, Plug, Protocol, Shell, pod};

/// The error that the plugin must answer.
fn refused(outcome: Result<Value>) -> Result<CniFailure> {
    let error = outcome.err().context("the plugin did not refuse")?;
    error.downcast::<CniFailure>()
}

fn endpoints(node: &Node) -> Result<Vec<weft_api::EndpointReport>> {
    node.weft_json("endpoints")
}

#[test]
fn a_sandbox_may_have_two_attachments() -> Result<()> {
    let bed = Bed::new()?;
    let node = bed.node(1);
    let server = bed.container(2, "default/server", &[])?;
    server.serve("server", 8080)?;
    let mut first = Attachment::new(node, "default/double", Plug::Veth)?;
    first.ifname = "net1".to_owned();
    first.add()?;
    let mut second = Attachment::new(node, "default/double", Plug::Veth)?;
    (second.container_id, second.netns) = (first.container_id.clone(), first.netns.clone());
    second.ifname = "net2".to_owned();
    second.config["name"] = json!("second");
    second.add()?;
    assert_eq!(endpoints(node)?.len(), 2);
    for (attachment, ifname) in [(&first, "net1"), (&second, "net2")] {
        for own in attachment.addresses()? {
            let to = server.sockets(8080).into_iter().find(|to| to.is_ipv4() == own.is_ipv4()).context("no address")?;
            // By this interface, whatever the default route is.
            let script = format!(
                "ip route get {} from {own}; ping -c 1 -W 5 -I {own} {}; ip route show dev {ifname}",
                to.ip(),
                to.ip()
            );
            let netns = std::path::Path::new(&first.netns);
            let outcome = node.machine().sh(Some(netns), &script)?;
            assert!(outcome.output.contains("1 received"), "{ifname}: {}", outcome.output);
        }
    }
    second.del()?;
    assert_eq!(endpoints(node)?.len(), 1);
    first.call("CHECK").context("CHECK of net1 after DEL of net2")?;
    first.del()?;
    assert_eq!(endpoints(node)?.len(), 0);
    Ok(())
}

#[test]
fn deleting_twice_and_deleting_the_unknown_succeed() -> Result<()> {
    let bed = Bed::new()?;
    let mut attachment = Attachment::new(bed.node(1), "default/short", Plug::Veth)?;
    attachment.del()?;
    attachment.add()?;
    attachment.call("CHECK")?;
    attachment.del()?;
    attachment.del()
}

#[test]
fn static_addresses_and_their_collisions() -> Result<()> {
    let bed = Bed::new()?;
    let node = bed.node(1);
    let mut first = Attachment::new(node, "default/fixed", Plug::Veth)?;
    first.args += ";IP=10.244.1.77";
    first.add()?;
    assert!(first.addresses()?.contains(&"10.244.1.77".parse()?));
    let mut second = Attachment::new(node, "default/other", Plug::Veth)?;
    second.args += ";IP=10.244.1.77";
    let failure = refused(second.call("ADD"))?;
    assert_eq!(failure.code, 7, "{failure}");
    assert!(failure.to_string().contains("10.244.1.77"), "{failure}");
    second.args = second.args.replace("10.244.1.77", "192.0.2.1");
    let failure = refused(second.call("ADD"))?;
    assert_eq!(failure.code, 7, "{failure}");
    assert_eq!(endpoints(node)?.len(), 1);
    Ok(())
}

#[test]
fn a_dead_agent_refuses_adds_and_takes_deletions_later() -> Result<()> {
    let bed = Bed::new()?;
    let node = bed.node(1);
    let mut attachment = Attachment::new(node, "default/pod", Plug::Veth)?;
    attachment.add()?;
    let given = attachment.addresses()?;
    node.stop_agent(Signal::SIGKILL)?;
    let late = Attachment::new(node, "default/late", Plug::Veth)?;
    let failure = refused(late.call("ADD"))?;
    assert_eq!(failure.code, 11, "{failure}");
    attachment.del()?;
    node.start_agent()?;
    node.agent_ready()?;
    let patience = std::time::Duration::from_secs(10);
    weft_testbed::until("the deletion to be finished", patience, || endpoints(node).is_ok_and(|all| all.is_empty()))?;
    assert_eq!(node.sh("ip -o link | grep -cE ' weft[0-9a-f]{10}[@:]'")?.output.trim(), "0", "a link stayed behind");
    // Its addresses may be given again.
    let mut again = Attachment::new(node, "default/again", Plug::Veth)?;
    again.args += &format!(";IP={}", given[0]);
    again.add()
}

#[test]
fn gc_takes_what_the_runtime_does_not_know() -> Result<()> {
    let bed = Bed::new()?;
    let node = bed.node(1);
    let mut kept = Attachment::new(node, "default/kept", Plug::Veth)?;
    kept.add()?;
    let mut lost = Attachment::new(node, "default/lost", Plug::Tap)?;
    lost.add()?;
    let mut gc = Attachment::new(node, "default/gc", Plug::Veth)?;
    gc.config["cni.dev/valid-attachments"] = json!([{"containerID": kept.container_id, "ifname": "eth0"}]);
    gc.call("GC")?;
    let left: Vec<String> = endpoints(node)?.into_iter().map(|endpoint| endpoint.id.container_id).collect();
    assert_eq!(left, [kept.container_id.clone()]);
    lost.result = None;
    kept.call("CHECK").map(drop)
}

#[test]
fn labels_of_a_pod_that_comes_late_count() -> Result<()> {
    let bed = Bed::new()?;
    let early = bed.container(1, "default/early", &[])?;
    let client = bed.container(2, "default/client", &[])?;
    early.serve("early", 8080)?;
    let vip = "10.96.0.10:80".parse()?;
    bed.apply(&weft_testbed::service("default/late", ["10.96.0.10", "fd00:96::10"], 80, 8080, &[("app", "late")]))?;
    assert!(client.ask_within(Protocol::Tcp, vip, std::time::Duration::from_millis(500)).is_err());
    bed.apply(&pod("default/early", "node1", &[("app", "late")]))?;
    let patience = std::time::Duration::from_secs(10);
    weft_testbed::until_ok("the backend", patience, || client.reaches(Protocol::Tcp, vip, "early")).map(drop)
}

#[test]
fn cleanup_leaves_nothing_and_the_next_agent_begins_anew() -> Result<()> {
    let bed = Bed::new()?;
    let node = bed.node(1);
    let mut lost = Vec::new();
    for (pod, plug) in [("default/pod", Plug::Veth), ("default/vm", Plug::Tap), ("default/vhost", Plug::VhostUser)] {
        let mut attachment = Attachment::new(node, pod, plug)?;
        attachment.add()?;
        lost.push(attachment);
    }
    assert_eq!(endpoints(node)?.len(), lost.len());
    let refused = node.cleanup()?;
    assert!(refused.status != 0 && refused.output.contains("another weft-agent runs"), "{}", refused.output);
    node.stop_agent(Signal::SIGTERM)?;
    for _ in 0..2 {
        node.cleanup()?.ok()?;
        let left = node.sh(
            "ip -o link | grep weft; ip -4 route show table all | grep 'proto 119'; ip -6 route show table all | grep 'proto 119'
             ls -d /sys/fs/bpf/weft 2>/dev/null; bpftool net show | grep weft; find /run/weft ! -name agent.lock ! -type d; find /mnt/$(hostname)/state 2>/dev/null; pgrep -a -r RSD weft-vhost",
        )?;
        assert_eq!(left.output.trim(), "");
    }
    node.start_agent()?;
    node.agent_ready()?;
    assert_eq!(endpoints(node)?.len(), 0);
    Attachment::new(node, "default/again", Plug::Veth)?.add()
}

/// What a runtime makes of the network configuration that the agent wrote: the latest version that it knows of `cniVersions`, or
/// `cniVersion` where it knows no such list.
#[test]
fn the_agents_network_configuration_serves_every_version_it_lists() -> Result<()> {
    const FOLDER: &str = "/mnt/node1/net.d";
    let config = json!({"cni": {"confDir": FOLDER}});
    let bed = Bed::with(&Options { nodes: 1, config, ..Options::default() })?;
    let node = bed.node(1);
    let list: Value = serde_json::from_str(&node.sh(&format!("cat {FOLDER}/05-weft.conflist"))?.ok()?)?;
    let as_runtime = |plug: Plug, version: &Value| -> Result<Attachment> {
        let mut attachment = Attachment::new(node, "default/versions", plug)?;
        let port = attachment.config["port"].take();
        attachment.config = list["plugins"][0].clone();
        attachment.config["port"] = port;
        (attachment.config["name"], attachment.config["cniVersion"]) = (list["name"].clone(), version.clone());
        Ok(attachment)
    };
    let versions = list["cniVersions"].as_array().with_context(|| format!("no cniVersions in {list}"))?;
    for version in versions.iter().chain([&list["cniVersion"]]) {
        let mut attachment = as_runtime(Plug::Veth, version)?;
        attachment.add()?;
        assert_eq!(attachment.result.as_ref().map(|result| &result["cniVersion"]), Some(version));
        attachment.call("CHECK").with_context(|| format!("CHECK of version {version}"))?;
        attachment.del()?;
    }

    let latest = versions.last().context("no version")?;
    let mut guest = as_runtime(Plug::VhostUser, latest)?;
    guest.add()?;
    let result = guest.result.clone().context("no result")?;
    let socket =
        result["interfaces"][1]["socketPath"].as_str().with_context(|| format!("no socketPath in {result}"))?;
    assert!(socket.ends_with("/vhost.sock"), "{socket}");
    guest.call("STATUS")?;
    let mut gc = as_runtime(Plug::Veth, latest)?;
    gc.config["cni.dev/valid-attachments"] = json!([]);
    gc.call("GC")?;
    assert_eq!(endpoints(node)?.len(), 0, "GC has left the guest's attachment");
    node.stop_agent(Signal::SIGKILL)?;
    assert_eq!(refused(gc.call("STATUS"))?.code, 50);
    Ok(())
}

/// Every one of its addresses is the workload's own: it sends with it, to another node too, and is reached at it.
#[test]
fn a_container_has_as_many_addresses_as_it_asked_for() -> Result<()> {
    const ASKED: [&str; 4] = ["10.244.1.70", "10.244.1.71", "10.244.1.72", "fd00:244:0:1::70"];
    let bed = Bed::new()?;
    let node = bed.node(1);
    let (near, far) = (bed.container(1, "default/near", &[])?, bed.container(2, "default/far", &[])?);
    let mut many = Attachment::new(node, "default/many", Plug::Veth)?;
    many.config["capabilities"] = json!({"ips": true});
    many.config["runtimeConfig"] = json!({"ips": ASKED});
    many.add()?;
    let own: Vec<std::net::IpAddr> = ASKED.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
    assert_eq!(many.addresses()?, own);
    let netns = std::path::Path::new(&many.netns);
    for own in own {
        for peer in [&near, &far] {
            let to = peer.sockets(0).into_iter().find(|to| to.is_ipv4() == own.is_ipv4()).context("no address")?;
            let out = node.machine().sh(Some(netns), &format!("ping -c 1 -W 5 -I {own} {}", to.ip()))?;
            assert!(out.output.contains("1 received"), "from {own}: {}", out.output);
            let back = peer.sh(&format!("ping -c 1 -W 5 {own}"))?;
            assert!(back.output.contains("1 received"), "to {own}: {}", back.output);
        }
    }
    // An address that it gave itself is not its own.
    let to = near.sockets(0).into_iter().find(std::net::SocketAddr::is_ipv4).context("no address")?;
    let script = format!("ip address add 10.244.1.73/32 dev eth0; ping -c 1 -W 1 -I 10.244.1.73 {}", to.ip());
    let out = node.machine().sh(Some(netns), &script)?;
    assert!(out.output.contains("0 received"), "{}", out.output);
    many.call("CHECK")?;
    many.del()
}
