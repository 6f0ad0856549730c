// SPDX-License-Identifier: Apache-2.0

//! `cargo xtask demo`: two nodes, containers and virtual machines, one Service over all of them, policies that let some in
//! and keep others out.

mod checks;

use std::{collections::BTreeSet, net::SocketAddr, process::ExitCode};

use anyhow::{Context as _, Result};
use serde_json::json;
use weft_testbed::{Bed, Container, Options, Protocol, Shell, Vm, ingress_policy, namespace, service};

use crate::build;
use checks::Checks;

const PORT: u16 = 8080;
const SERVICE: [&str; 2] = ["10.96.0.10", "fd00:96::10"];
const FRIEND: (&str, &str) = ("role", "friend");
const STRANGER: (&str, &str) = ("role", "stranger");
const CLERK: (&str, &str) = ("role", "clerk");
const WEB: (&str, &str) = ("app", "web");
const STORE: (&str, &str) = ("app", "store");
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
        let clerk = bed.container(1, "demo/clerk", &[CLERK])?;
        step(
            "a virtual machine on a tap of the first node: Debian's kernel, configured by DHCP and router advertisements",
        );
        let tap = bed.vm(1, TAP_VM, &[WEB, FRIEND])?;
        step("a virtual machine on the second node, its network card a vhost-user socket");
        let vhost = bed.vhost_vm(2, VHOST_VM, &[WEB, FRIEND])?;
        let site = Self { guests: [tap, vhost], webs, stores, friends, strangers, clerk, bed };
        site.start_servers()?;
        Ok(site)
    }

    fn start_servers(&self) -> Result<()> {
        for server in self.webs.iter().chain(&self.stores) {
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
    SERVICE.iter().filter_map(|address| Some(SocketAddr::new(address.parse().ok()?, 80)))
}

fn step(what: &str) {
    println!("\n== {what}");
}
