// SPDX-License-Identifier: Apache-2.0

//! Services with guests as clients and as backends, on a tap and on a vhost-user socket: nothing is different from containers.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use weft_testbed::{
    Bed, Container, LOAD_BALANCER, NODE_PORT, Node, Protocol, SERVICE_PORT, Shell, VIPS, Vm, balanced, exposed,
    hairpin, is_refused, meets, node_ports, pod, until_ok,
};

const SOON: Duration = Duration::from_secs(20);
const BOTH: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];
const WEB: [(&str, &str); 1] = [("app", "web")];

/// On the first node a guest on a tap, on the second one a guest on a vhost-user socket and a container.
struct Site {
    tap: Vm,
    vhost: Vm,
    container: Container,
    bed: Bed,
}

impl Site {
    fn new(labels: &[(&str, &str)]) -> Result<Self> {
        let bed = Bed::new()?;
        let tap = bed.vm(1, "default/tap", labels)?;
        let vhost = bed.vhost_vm(2, "default/vhost", labels)?;
        let container = bed.container(2, "default/container", &WEB)?;
        Ok(Self { tap, vhost, container, bed })
    }

    /// Guests with the name that they serve by, and the node that they are on.
    fn guests(&self) -> [(&'static str, &Vm, &Node); 2] {
        [("tap", &self.tap, self.bed.node(1)), ("vhost", &self.vhost, self.bed.node(2))]
    }

    fn serve(&self) -> Result<()> {
        self.tap.serve("tap", SERVICE_PORT)?;
        self.vhost.serve("vhost", SERVICE_PORT)?;
        self.container.serve("container", SERVICE_PORT)
    }
}

const ALL: [&str; 3] = ["container", "tap", "vhost"];

fn of_family(like: IpAddr, addresses: &[IpAddr]) -> Vec<IpAddr> {
    addresses.iter().filter(|own| own.is_ipv4() == like.is_ipv4()).copied().collect()
}

/// The frontends of [`balanced`] that a workload of `node` reaches without leaving it, of one family.
fn frontends(node: &Node, family: usize) -> Result<[SocketAddr; 3]> {
    let address = |text: &str| Ok::<_, anyhow::Error>(SocketAddr::new(text.parse()?, 80));
    Ok([address(VIPS[family])?, node_ports(node, NODE_PORT)[family], address(LOAD_BALANCER[family])?])
}

/// By ClusterIP, NodePort and load balancer; each backend sees the guest's own address, the guest itself the hairpin address.
#[test]
fn guests_meet_each_other_and_themselves_at_every_frontend() -> Result<()> {
    let site = Site::new(&WEB)?;
    site.serve()?;
    site.bed.apply(&balanced("default/web"))?;
    for (own_name, guest, node) in site.guests() {
        for family in 0..2 {
            for to in frontends(node, family)? {
                let own = of_family(to.ip(), guest.addresses());
                let itself = [hairpin(to.ip())];
                let seen = |name: &str| if name == own_name { &itself[..] } else { &own[..] };
                meets(guest, to, &ALL.map(|name| (name, seen(name)))).with_context(|| node.agent_log())?;
            }
        }
    }
    Ok(())
}

/// At the other node a guest is somebody from elsewhere: it comes with its node's address, and leaves that node with its own.
#[test]
fn guests_meet_all_at_the_other_nodes_node_port() -> Result<()> {
    let site = Site::new(&WEB)?;
    site.serve()?;
    site.bed.apply(&exposed("default/web", VIPS, NODE_PORT, "Cluster"))?;
    let nodes = [site.bed.node(1), site.bed.node(2)];
    for ((_, guest, here), there) in site.guests().into_iter().zip(nodes.into_iter().rev()) {
        let local = |name: &str| (name == "tap") == (there.name() == nodes[0].name());
        for to in node_ports(there, NODE_PORT) {
            let came_as = [here.address_for(to.ip()), of_family(to.ip(), guest.addresses())[0]];
            let left_as = [there.address_for(to.ip())];
            let seen = |name: &str| if local(name) { &came_as[..] } else { &left_as[..] };
            meets(guest, to, &ALL.map(|name| (name, seen(name)))).with_context(|| there.agent_log())?;
        }
    }
    Ok(())
}

/// Whom nobody serves is told so, and who asks for a port that no Service has; with a local policy and no local backend there is silence.
#[test]
fn guests_are_refused_as_containers_are() -> Result<()> {
    let site = Site::new(&[("app", "client")])?;
    site.bed.apply(&exposed("default/web", VIPS, NODE_PORT, "Cluster"))?;
    for (_, guest, node) in site.guests() {
        for family in 0..2 {
            let [vip, node_port, _] = frontends(node, family)?;
            is_refused(guest, vip)?;
            is_refused(guest, node_port)?;
            is_refused(guest, SocketAddr::new(vip.ip(), 81))?;
        }
    }
    site.container.serve("container", SERVICE_PORT)?;
    let mut local = exposed("default/web", VIPS, NODE_PORT, "Cluster");
    local["spec"]["internalTrafficPolicy"] = json!("Local");
    site.bed.apply(&local)?;
    for vip in VIPS {
        let vip = SocketAddr::new(vip.parse()?, 80);
        for protocol in BOTH {
            until_ok("the guest beside the backend is served", SOON, || {
                site.vhost.reaches(protocol, vip, "container").map(drop)
            })?;
            until_ok("the other node's is not", SOON, || site.tap.is_kept_out(protocol, vip))?;
        }
    }
    Ok(())
}

/// Which servers a guest meets, of so many new connections.
fn met(guest: &Vm, to: SocketAddr, times: usize) -> Result<BTreeSet<String>> {
    (0..times).map(|_| Ok(guest.ask(Protocol::Tcp, to)?.server)).collect()
}

fn with(annotations: &Value, affinity: &str) -> Value {
    let mut object = balanced("default/web");
    object["metadata"]["annotations"] = annotations.clone();
    object["metadata"]["uid"] = json!("0a1b2c3d-0000-4000-8000-000000000002");
    object["spec"]["sessionAffinity"] = json!(affinity);
    object
}

/// Every algorithm leads guests to guests; where a client keeps its backend a guest has one, at all frontends of its node.
#[test]
fn guests_are_chosen_and_choose_by_every_algorithm() -> Result<()> {
    let site = Site::new(&WEB)?;
    site.serve()?;
    let vip = SocketAddr::new(VIPS[0].parse()?, 80);
    for algorithm in ["random", "consistent", "least-loaded"] {
        let annotations = json!({"weft.dev/algorithm": algorithm});
        site.bed.apply(&with(&annotations, "None"))?;
        for (_, guest, _) in site.guests() {
            until_ok(&format!("{} meets all by {algorithm}", guest.label()), SOON, || {
                let met = met(guest, vip, 30)?;
                ensure!(met.len() == ALL.len(), "{met:?}");
                Ok(())
            })?;
        }
        site.bed.apply(&with(&annotations, "ClientIP"))?;
        for (_, guest, node) in site.guests() {
            until_ok(&format!("{} keeps its backend by {algorithm}", guest.label()), SOON, || {
                let kept = met(guest, vip, 6)?;
                ensure!(kept.len() == 1, "{kept:?}");
                for to in frontends(node, 0)? {
                    let there = met(guest, to, 3)?;
                    ensure!(there == kept, "{there:?} at {to} instead of {kept:?}");
                }
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// A guest that is drained by its weight gets no new clients, on a tap and on a vhost-user socket, and is back when it is not.
#[test]
fn a_guest_is_drained_by_its_weight() -> Result<()> {
    let site = Site::new(&WEB)?;
    site.serve()?;
    site.bed.apply(&balanced("default/web"))?;
    let vip = SocketAddr::new(VIPS[1].parse()?, 80);
    for ((name, _, node), (_, client, _)) in site.guests().into_iter().zip(site.guests().into_iter().rev()) {
        for (weight, is_met) in [("0", false), ("100", true)] {
            let labels = [("app", "web"), ("weft.dev/weight", weight)];
            site.bed.apply(&pod(&format!("default/{name}"), node.name(), &labels))?;
            until_ok(&format!("{name} of weight {weight} is met: {is_met}"), SOON, || {
                let met = met(client, vip, 30)?;
                ensure!(met.contains(name) == is_met, "{met:?}");
                Ok(())
            })
            .with_context(|| node.agent_log())?;
        }
    }
    Ok(())
}
