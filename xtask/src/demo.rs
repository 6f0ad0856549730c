// SPDX-License-Identifier: Apache-2.0

//! `cargo xtask demo`: two nodes, containers and a virtual machine, one Service over all of them, policies that let some in
//! and keep others out.

mod checks;

use std::{collections::BTreeSet, net::SocketAddr, process::ExitCode};

use anyhow::{Context as _, Result};
use weft_testbed::{Bed, Container, Protocol, Shell, Vm, ingress_policy, namespace, service};

use crate::build;
use checks::Checks;

const PORT: u16 = 8080;
const SERVICE: [&str; 2] = ["10.96.0.10", "fd00:96::10"];
const FRIEND: (&str, &str) = ("role", "friend");
const STRANGER: (&str, &str) = ("role", "stranger");
const CLERK: (&str, &str) = ("role", "clerk");
const WEB: (&str, &str) = ("app", "web");
const STORE: (&str, &str) = ("app", "store");

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
    site.the_guest_is_kept_out_of_the_store(checks);
    site.the_outside_sees_the_node(checks);
    site.show()
}

/// Two nodes. Web servers: a container on each node, and a guest on the first; friends may reach them, strangers may not.
/// Stores: one on each node; clerks may reach them, and the guest may not.
struct Site {
    guest: Vm,
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
        let bed = Bed::new()?;
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
        step("a virtual machine on the first node: Debian's kernel, configured by DHCP and router advertisements");
        let guest = bed.vm(1, "demo/vm", &[WEB, FRIEND])?;
        let site = Self { guest, webs, stores, friends, strangers, clerk, bed };
        site.start_servers()?;
        Ok(site)
    }

    fn start_servers(&self) -> Result<()> {
        for server in self.webs.iter().chain(&self.stores) {
            server.serve(&server.label(), PORT)?;
        }
        self.bed.outside().serve("outside", PORT)?;
        self.guest.serve("demo/vm", PORT)
    }

    /// The servers of the Service, by name and addresses.
    fn backends(&self) -> Vec<(String, Vec<SocketAddr>)> {
        let containers = self.webs.iter().map(|web| (web.label(), web.sockets(PORT)));
        containers.chain([("demo/vm".to_owned(), self.guest.sockets(PORT))]).collect()
    }

    /// Those whom the policy lets in: a container on each node, and the guest.
    fn clients(&self) -> Vec<&dyn Shell> {
        self.friends.iter().map(|friend| -> &dyn Shell { friend }).chain([&self.guest as &dyn Shell]).collect()
    }

    fn everybody_reaches_everybody(&self, checks: &mut Checks) {
        step("friends reach every server: containers and the guest, on the same node and across nodes");
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
        step("the Service spreads over containers and the guest");
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

    fn the_guest_is_kept_out_of_the_store(&self, checks: &mut Checks) {
        step("a clerk reaches the stores, the guest does not");
        for store in &self.stores {
            for to in store.sockets(PORT) {
                checks.answered_by(&self.clerk, Protocol::Tcp, to, &store.label());
                checks.kept_out(&self.guest, Protocol::Tcp, to);
            }
        }
    }

    fn the_outside_sees_the_node(&self, checks: &mut Checks) {
        step("the outside sees the node's address, not the workload's");
        let node = self.bed.node(1);
        for client in [&self.friends[0] as &dyn Shell, &self.guest] {
            for family in [node.v4().into(), node.v6().into()] {
                let to = SocketAddr::new(self.bed.outside().address_for(family), PORT);
                checks.seen_as(client, to, node.address_for(family));
            }
        }
    }

    fn show(&self) -> Result<()> {
        let node = self.bed.node(1);
        for command in ["status", "endpoints", "services", "policies", "flows --last 30", "drops"] {
            step(&format!("weft {command}"));
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
