// SPDX-License-Identifier: Apache-2.0

//! The dataplane goes on without its agent.

use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use weft_abi::{ABI_VERSION, LAYOUT, PinFolder};
use weft_testbed::{Bed, Job, Protocol, Shell, Tables, ingress_policy, service, until_ok};

const PORT: u16 = 8080;

/// Waits for the end of a stream that `client` started: every one of its records must have come back.
fn loses_nothing(bed: &Bed, client: &dyn Shell, stream: Job, records: usize) -> Result<()> {
    let outcome = stream.finish(client, Duration::from_secs(90))?;
    let all = format!("sent {records} received {records} lost 0");
    ensure!(outcome.status == 0 && outcome.output.contains(&all), "{}\n{}", outcome.output, dropped(bed)?);
    Ok(())
}

/// What every node dropped, and why.
fn dropped(bed: &Bed) -> Result<String> {
    let tables = bed.nodes().iter().map(|node| Ok(format!("{}:\n{}", node.name(), node.sh("weft drops")?.output)));
    tables.collect()
}

/// Agents that go and come back under streams of 1,000 records a second by TCP and by UDP, directly and by a Service: nothing
/// is lost. Between the two, `meanwhile` is done on the node. The Service has `backends`.
fn streams_go_on(backends: usize, meanwhile: &str) -> Result<Bed> {
    let bed = Bed::new()?;
    let mut servers = Vec::new();
    for number in 0..backends {
        let server = bed.container(2, &format!("default/server-{number}"), &[("app", "server")])?;
        server.serve("server", PORT)?;
        servers.push(server);
    }
    bed.apply(&service("default/server", ["10.96.0.10", "fd00:96::10"], 80, PORT, &[("app", "server")]))?;
    let client = bed.container(1, "default/client", &[])?;
    let direct = servers[0].sockets(PORT)[0];
    weft_testbed::until_ok("the Service", Duration::from_secs(10), || {
        client.ask(Protocol::Tcp, "10.96.0.10:80".parse()?)
    })?;
    let streams = [
        ("tcp-direct", format!("weft-probe stream tcp {direct} --rate 1000 --seconds 12")),
        ("tcp-service", "weft-probe stream tcp 10.96.0.10:80 --rate 1000 --seconds 12".to_owned()),
        ("tcp6-service", "weft-probe stream tcp [fd00:96::10]:80 --rate 1000 --seconds 12".to_owned()),
        ("udp-service", "weft-probe stream udp [fd00:96::10]:80 --rate 1000 --seconds 12".to_owned()),
    ];
    let mut jobs = Vec::new();
    for (name, script) in &streams {
        let job = client.start(name, script)?;
        job.prints(&client, "STREAMING", Duration::from_secs(10))?;
        jobs.push(job);
    }
    for node in bed.nodes() {
        node.stop_agent(Signal::SIGKILL)?;
        node.sh(meanwhile)?.ok()?;
        node.start_agent()?;
        node.agent_ready()?;
    }
    for job in jobs {
        loses_nothing(&bed, &client, job, 12000)?;
    }
    Ok(bed)
}

#[test]
fn killing_the_agents_loses_nothing() -> Result<()> {
    streams_go_on(1, "true").map(drop)
}

/// An agent whose maps have another layout starts with empty ones: the programs that it finds must serve until they are filled.
#[test]
fn another_layout_of_the_maps_loses_nothing() -> Result<()> {
    in_place_of("v0", 1)
}

/// Layouts of one meaning go by one table of flows: a connection stays with the one of eight backends that it has.
#[test]
fn another_layout_of_other_maps_moves_no_connection() -> Result<()> {
    in_place_of(&format!("v{ABI_VERSION}-{:016x}", LAYOUT ^ 1), 8)
}

/// Agents come back to what another build has pinned in `folder`.
fn in_place_of(folder: &str, backends: usize) -> Result<()> {
    let (pins, this) = ("/sys/fs/bpf/weft", PinFolder.to_string());
    let bed = streams_go_on(backends, &format!("mv {pins}/{this} {pins}/{folder}"))?;
    for node in bed.nodes() {
        let left = node.sh(&format!("ls -d {pins}/v*"))?.ok()?;
        assert_eq!(left.trim(), format!("{pins}/{this}"), "{} keeps what is of no use", node.name());
    }
    Ok(())
}

/// The same for a guest on a tap, at a rate that an emulated processor keeps up with.
#[test]
fn killing_the_agent_loses_nothing_of_a_guest() -> Result<()> {
    let bed = Bed::new()?;
    let guest = bed.vm(1, "default/guest", &[])?;
    let server = bed.container(2, "default/server", &[])?;
    server.serve("server", PORT)?;
    let mut jobs = Vec::new();
    for (name, to) in ["tcp", "udp"].into_iter().zip(server.sockets(PORT)) {
        let job =
            guest.start(name, &format!("weft-probe stream {name} {to} --rate 200 --seconds 10 --timeout 10000"))?;
        job.prints(&guest, "STREAMING", Duration::from_secs(20))?;
        jobs.push(job);
    }
    bed.node(1).stop_agent(Signal::SIGKILL)?;
    bed.node(1).start_agent()?;
    bed.node(1).agent_ready()?;
    for job in jobs {
        loses_nothing(&bed, &guest, job, 2000)?;
    }
    Ok(())
}

/// What is plugged in while an agent was away, and after it came back, works.
#[test]
fn an_agent_that_comes_back_serves_as_before() -> Result<()> {
    let bed = Bed::new()?;
    let server = bed.container(1, "default/server", &[])?;
    server.serve("server", PORT)?;
    let node = bed.node(1);
    let before = node.weft_json::<Vec<weft_api::EndpointReport>>("endpoints")?;
    node.stop_agent(Signal::SIGTERM)?;
    let far = bed.container(2, "default/far", &[])?;
    for to in server.sockets(PORT) {
        far.reaches(Protocol::Tcp, to, "server")?;
    }
    node.start_agent()?;
    node.agent_ready()?;
    let after = node.weft_json::<Vec<weft_api::EndpointReport>>("endpoints")?;
    assert_eq!(before, after);
    let late = bed.container(1, "default/late", &[])?;
    assert!(!late.addresses().iter().any(|address| server.addresses().contains(address)));
    for to in server.sockets(PORT) {
        late.reaches(Protocol::Udp, to, "server")?;
    }
    Ok(())
}

/// Numbers and what generations stand for are in the maps: an agent that comes back writes nothing. Where they are lost it finds
/// others, and everything holds as before.
#[test]
fn an_agent_that_comes_back_goes_on_with_the_numbers_in_the_maps() -> Result<()> {
    let bed = Bed::new()?;
    let server = bed.container(1, "default/server", &[("app", "server")])?;
    server.serve("server", PORT)?;
    let friend = bed.container(1, "default/friend", &[("role", "friend")])?;
    let stranger = bed.container(1, "default/stranger", &[("role", "other")])?;
    bed.apply(&service("default/server", ["10.96.0.10", "fd00:96::10"], 80, PORT, &[("app", "server")]))?;
    bed.apply(&ingress_policy("default/friends", &[("app", "server")], &[("role", "friend")]))?;
    let (node, soon, to) = (bed.node(1), Duration::from_secs(10), "10.96.0.10:80".parse()?);
    let holds = || {
        until_ok("the friend to be let in", soon, || friend.ask(Protocol::Tcp, to))?;
        until_ok("the other one to be kept out", soon, || stranger.is_kept_out(Protocol::Tcp, to))
    };
    holds()?;
    let restarted = |meanwhile: &str| -> Result<[String; 2]> {
        node.stop_agent(Signal::SIGKILL)?;
        let before = Tables::of(node)?.numbered()?;
        node.sh(meanwhile)?.ok()?;
        node.start_agent()?;
        node.agent_ready()?;
        Ok([before, Tables::of(node)?.numbered()?])
    };
    let left = "echo '{}' > /run/weft/numbers.json; echo '{}' > /run/weft/services.json";
    let [before, after] = restarted(left)?;
    assert_eq!(before, after);
    let old = node.sh("find /run/weft -name '*.json' ! -name whole.json")?.ok()?;
    assert_eq!(old, "", "of an earlier version");
    let [before, after] = restarted("rm /sys/fs/bpf/weft/v*/maps/NUMBERING /sys/fs/bpf/weft/v*/maps/DIGESTS")?;
    assert_ne!(before, after);
    holds()?;
    let [before, after] = restarted("true")?;
    assert_eq!(before, after);
    holds()
}

/// What a reboot leaves of a node: its disk.
const REBOOT: &str = "rm -r /sys/fs/bpf/weft /run/weft
    for link in weft0 weft_vxlan $(ip -br link | grep -oE '^weft[0-9a-f]{10}'); do ip link del $link; done
    for netns in $(ip netns list | cut -d' ' -f1); do ip netns del $netns; done";

#[test]
fn a_node_that_boots_again_begins_anew() -> Result<()> {
    let bed = Bed::new()?;
    bed.container(1, "default/lost", &[])?;
    let client = bed.container(2, "default/client", &[])?;
    let node = bed.node(1);
    node.stop_agent(Signal::SIGKILL)?;
    node.sh(REBOOT)?.ok()?;
    node.start_agent()?;
    node.agent_ready()?;
    assert_eq!(node.weft_json::<Vec<weft_api::EndpointReport>>("endpoints")?, []);
    let server = bed.container(1, "default/server", &[])?;
    server.serve("server", PORT)?;
    for to in server.sockets(PORT) {
        client.reaches(Protocol::Tcp, to, "server")?;
    }
    Ok(())
}
