// SPDX-License-Identifier: Apache-2.0

//! `cargo xtask demo`: two nodes, containers and virtual machines, one Service over all of them, policies that let some in
//! and keep others out, a Service that the outside reaches, one that is drained, and one that nobody serves.

mod checks;

use std::{collections::BTreeSet, net::SocketAddr, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use weft_testbed::{
    Bed, Container, Options, Protocol, Shell, TcpConnection, Vm, ingress_policy, namespace, pod, service,
    set_node_port, until_ok,
};

use crate::build;
use checks::Checks;

const PORT: u16 = 8080;
const SERVICE: [&str; 2] = ["10.96.0.10", "fd00:96::10"];
const FRIEND: (&str, &str) = ("role", "friend");
const STRANGER: (&str, &str) = ("role", "stranger");
const CLERK: (&str, &str) = ("role", "clerk");
const WEB: (&str, &str) = ("app", "web");
const STORE: (&str, &str) = ("app", "store");
const SHOP: (&str, &str) = ("app", "shop");
const CLOSED: [&str; 2] = ["10.96.0.30", "fd00:96::30"];
const LOAD_BALANCER: [&str; 2] = ["198.18.7.7", "2001:db8:18::7"];
const NODE_PORT: u16 = 30_080;
const CLOSED_NODE_PORT: u16 = 30_081;
/// Until what was applied is served.
const SOON: Duration = Duration::from_secs(20);
const TAP_VM: &str = "demo/vm";
const VHOST_VM: &str = "demo/vhost-vm";

/// Runs the demonstration; success only if every check passed.
pub(crate) fn run() -> Result<ExitCode> {
    build::programs()?;
    let mut checks = Checks::default();
    if let Err(error) = demonstrate(&mut checks) {
        checks.failed(&format!("{error:#}"));
    }
    Ok(checks.close())
}

fn demonstrate(checks: &mut Checks) -> Result<()> {
    let site = Site::build()?;
    site.everybody_reaches_everybody(checks);
    site.the_service_has_all_backends(checks);
    site.strangers_are_kept_out(checks);
    site.the_guests_are_kept_out_of_the_store(checks);
    site.the_outside_sees_the_node(checks);
    site.the_outside_reaches_the_shop(checks)?;
    site.a_backend_is_drained(checks)?;
    site.nobody_there_is_told_at_once(checks);
    site.show()
}

/// Two nodes. Web servers: a container and a guest on each node, one guest on a tap and one on a vhost-user socket; friends
/// may reach them, strangers may not. Stores: one on each node; clerks may reach them, and the guests may not.
struct Site {
    guests: [Vm; 2],
    webs: Vec<Container>,
    stores: Vec<Container>,
    friends: Vec<Container>,
    strangers: Vec<Container>,
    shops: Vec<Container>,
    clerk: Container,
    bed: Bed,
}

impl Site {
    fn build() -> Result<Self> {
        step("two nodes, an agent on each");
        // What the end of it shows was told before anybody could follow.
        let bed = Bed::with(&Options { config: json!({ "flowSample": 1 }), ..Options::default() })?;
        bed.apply(&namespace("demo", &[]))?;
        bed.apply(&service("demo/web", SERVICE, 80, PORT, &[WEB]))?;
        bed.apply(&shop())?;
        bed.apply(&closed())?;
        bed.apply(&ingress_policy("demo/friends-reach-web", &[WEB], &[FRIEND]))?;
        bed.apply(&ingress_policy("demo/clerks-reach-store", &[STORE], &[CLERK]))?;
        step("containers on both nodes");
        let on_both = |name: &str, label| -> Result<Vec<Container>> {
            (1..=2).map(|number| bed.container(number, &format!("demo/{name}-{number}"), &[label])).collect()
        };
        let webs = on_both("web", WEB)?;
        let stores = on_both("store", STORE)?;
        let friends = on_both("friend", FRIEND)?;
        let strangers = on_both("stranger", STRANGER)?;
        let shops = on_both("shop", SHOP)?;
        let clerk = bed.container(1, "demo/clerk", &[CLERK])?;
        step(
            "a virtual machine on a tap of the first node: Debian's kernel, configured by DHCP and router advertisements",
        );
        let tap = bed.vm(1, TAP_VM, &[WEB, FRIEND])?;
        step("a virtual machine on the second node, its network card a vhost-user socket");
        let vhost = bed.vhost_vm(2, VHOST_VM, &[WEB, FRIEND])?;
        let site = Self { guests: [tap, vhost], webs, stores, friends, strangers, shops, clerk, bed };
        site.start_servers()?;
        Ok(site)
    }

    fn start_servers(&self) -> Result<()> {
        for server in self.webs.iter().chain(&self.stores).chain(&self.shops) {
            server.serve(&server.label(), PORT)?;
        }
        self.guests_by_name().try_for_each(|(name, guest)| guest.serve(name, PORT))?;
        self.bed.outside().serve("outside", PORT)
    }

    fn guests_by_name(&self) -> impl Iterator<Item = (&'static str, &Vm)> {
        [TAP_VM, VHOST_VM].into_iter().zip(&self.guests)
    }

    /// The servers of the Service, by name and addresses.
    fn backends(&self) -> Vec<(String, Vec<SocketAddr>)> {
        let containers = self.webs.iter().map(|web| (web.label(), web.sockets(PORT)));
        let guests = self.guests_by_name().map(|(name, guest)| (name.to_owned(), guest.sockets(PORT)));
        containers.chain(guests).collect()
    }

    /// Those whom the policy lets in: a container and a guest on each node.
    fn clients(&self) -> Vec<&dyn Shell> {
        let friends = self.friends.iter().map(|friend| -> &dyn Shell { friend });
        friends.chain(self.guests.iter().map(|guest| -> &dyn Shell { guest })).collect()
    }

    fn everybody_reaches_everybody(&self, checks: &mut Checks) {
        step("friends reach every server: containers and guests, on the same node and across nodes");
        for client in self.clients() {
            for (server, sockets) in self.backends() {
                for to in sockets {
                    for protocol in [Protocol::Tcp, Protocol::Udp] {
                        checks.answered_by(client, protocol, to, &server);
                    }
                }
            }
        }
    }

    fn the_service_has_all_backends(&self, checks: &mut Checks) {
        step("the Service spreads over containers and guests");
        let all: BTreeSet<String> = self.backends().into_iter().map(|(name, _)| name).collect();
        for client in self.clients() {
            for to in service_sockets() {
                checks.spread_over(client, to, &all);
            }
        }
    }

    fn strangers_are_kept_out(&self, checks: &mut Checks) {
        step("strangers reach nothing of it, by no way");
        for client in &self.strangers {
            let direct = self.backends().into_iter().flat_map(|(_, sockets)| sockets);
            for to in direct.chain(service_sockets()) {
                checks.kept_out(client, Protocol::Tcp, to);
            }
        }
    }

    fn the_guests_are_kept_out_of_the_store(&self, checks: &mut Checks) {
        step("a clerk reaches the stores, the guests do not");
        for store in &self.stores {
            for to in store.sockets(PORT) {
                checks.answered_by(&self.clerk, Protocol::Tcp, to, &store.label());
                for guest in &self.guests {
                    checks.kept_out(guest, Protocol::Tcp, to);
                }
            }
        }
    }

    fn the_outside_sees_the_node(&self, checks: &mut Checks) {
        step("the outside sees the node's address, not the workload's");
        let [tap, vhost] = &self.guests;
        let clients: [(usize, &dyn Shell); 3] = [(1, &self.friends[0]), (1, tap), (2, vhost)];
        for (number, client) in clients {
            let node = self.bed.node(number);
            for family in [node.v4().into(), node.v6().into()] {
                let to = SocketAddr::new(self.bed.outside().address_for(family), PORT);
                checks.seen_as(client, to, node.address_for(family));
            }
        }
    }

    /// By a NodePort of either node, and by an address that a load balancer gave it; the nodes themselves by that, too.
    fn the_outside_reaches_the_shop(&self, checks: &mut Checks) -> Result<()> {
        step("the outside reaches the shop by NodePort and load balancer, and so do the nodes");
        let [first, second] = [1, 2].map(|number| self.bed.node(number));
        for (address, via) in LOAD_BALANCER.into_iter().zip([first.v4().to_string(), first.v6().to_string()]) {
            self.bed.outside().sh(&format!("ip route add {address} via {via}"))?.ok()?;
        }
        let all = self.shops.iter().map(Container::label).collect();
        for node in [first, second] {
            for address in [node.v4().into(), node.v6().into()] {
                checks.spread_over(self.bed.outside(), SocketAddr::new(address, NODE_PORT), &all);
            }
        }
        for to in sockets(LOAD_BALANCER) {
            for client in [self.bed.outside() as &dyn Shell, &**first, &**second, &self.friends[0]] {
                checks.spread_over(client, to, &all);
            }
        }
        Ok(())
    }

    /// With weight 0 its connections go on, and others get the new ones.
    fn a_backend_is_drained(&self, checks: &mut Checks) -> Result<()> {
        step("a shop is drained: its connections go on, new ones go to the other");
        let (drained, other) = (self.shops[1].label(), self.shops[0].label());
        let to = SocketAddr::new(self.bed.node(1).v4().into(), NODE_PORT);
        let mut connection = until_ok("a connection of it", SOON, || {
            let connection = TcpConnection::open(self.bed.outside(), to)?;
            ensure!(connection.greeting().server == drained, "{} answers", connection.greeting().server);
            Ok(connection)
        })?;
        let mut object = pod(&drained, self.bed.node(2).name(), &[SHOP]);
        object["metadata"]["labels"]["weft.dev/weight"] = json!("0");
        self.bed.apply(&object)?;
        until_ok("the other has all new ones", SOON, || {
            for _ in 0..20 {
                let met = self.bed.outside().ask(Protocol::Tcp, to)?.server;
                ensure!(met == other, "{met} answers");
            }
            Ok(())
        })?;
        checks
            .count(&format!("{drained}, drained"), connection.goes_on().map(|()| "its connection goes on".to_owned()));
        let next = (0..20).try_for_each(|_| {
            let met = self.bed.outside().ask(Protocol::Tcp, to)?.server;
            ensure!(met == other, "{met} answers");
            Ok(())
        });
        checks.count(&format!("outside -> Service {to}"), next.map(|()| format!("20 of 20 new ones go to {other}")));
        Ok(())
    }

    fn nobody_there_is_told_at_once(&self, checks: &mut Checks) {
        step("a Service without backends refuses at once: nobody waits");
        let node = self.bed.node(1);
        let of_node = [node.v4().into(), node.v6().into()].map(|address| SocketAddr::new(address, CLOSED_NODE_PORT));
        for to in of_node {
            checks.refused(self.bed.outside(), to);
        }
        for to in sockets(CLOSED) {
            for client in [&self.friends[0] as &dyn Shell, &**node] {
                checks.refused(client, to);
            }
        }
    }

    fn show(&self) -> Result<()> {
        let on_the_first = ["status", "endpoints", "services", "policies", "flows --last 30", "drops"];
        let details = format!("vm show {VHOST_VM}");
        let on_the_second = ["vm", &details];
        let commands = on_the_first.map(|command| (1, command)).into_iter();
        for (number, command) in commands.chain(on_the_second.map(|command| (2, command))) {
            let node = self.bed.node(number);
            step(&format!("{}: weft {command}", node.name()));
            print!("{}", node.weft(command).context("the demonstration's last part")?);
        }
        Ok(())
    }
}

fn service_sockets() -> impl Iterator<Item = SocketAddr> {
    sockets(SERVICE)
}

fn sockets(addresses: [&str; 2]) -> impl Iterator<Item = SocketAddr> {
    addresses.into_iter().filter_map(|address| Some(SocketAddr::new(address.parse().ok()?, 80)))
}

/// A Service with everything that one of type `LoadBalancer` has.
fn shop() -> Value {
    let mut object = service("demo/shop", ["10.96.0.20", "fd00:96::20"], 80, PORT, &[SHOP]);
    object["spec"]["type"] = json!("LoadBalancer");
    set_node_port(&mut object, NODE_PORT);
    object["status"] = json!({"loadBalancer": {"ingress": LOAD_BALANCER.map(|address| json!({"ip": address}))}});
    object
}

/// One that nobody serves.
fn closed() -> Value {
    let mut object = service("demo/closed", CLOSED, 80, PORT, &[("app", "nobody")]);
    object["spec"]["type"] = json!("NodePort");
    set_node_port(&mut object, CLOSED_NODE_PORT);
    object
}

fn step(what: &str) {
    println!("\n== {what}");
}
