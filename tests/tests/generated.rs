// SPDX-License-Identifier: Apache-2.0

//! A generated cluster, from an API server and from a folder: the maps are the same, and an agent that is killed there loses
//! nothing.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use weft_testbed::{
    Bed, Binaries, Container, Options, Shell as _, Tables,
    apiserver::{ApiServer, Population},
    until_ok,
};

const PATIENCE: Duration = Duration::from_secs(60);
/// The port of a server beyond the cluster.
const OUTSIDE: u16 = 8080;
/// Records that a stream over a restart sends.
const RECORDS: usize = 10_000;

fn population() -> Population {
    Population {
        here: "node1".to_owned(),
        nodes: 8,
        pods_per_node: 8,
        services: 300,
        endpoints: 4,
        policies: 40,
        everyone: false,
    }
}

/// The node of the cluster, with one of its pods plugged in.
struct Site {
    // Before the bed: workloads are unplugged while their agent is there.
    local: Container,
    bed: Bed,
    _server: Option<ApiServer>,
}

impl Site {
    fn served() -> Result<Self> {
        let server = ApiServer::new();
        population().install(&server);
        let bed = server.site(&Options { nodes: 1, ..Options::default() }, &Binaries::locate()?)?;
        let node = bed.node(1);
        node.start_agent()?;
        node.agent_ready()?;
        Self::on(bed, Some(server))
    }

    fn placed() -> Result<Self> {
        let bed = Bed::with(&Options { nodes: 1, ..Options::default() })?;
        population().place(&bed)?;
        Self::on(bed, None)
    }

    fn on(bed: Bed, server: Option<ApiServer>) -> Result<Self> {
        let pod = population().local_pod(0);
        let local = Container::new(bed.node(1), &format!("{}/{}", pod.namespace, pod.name))?;
        let site = Self { local, bed, _server: server };
        until_ok("every Service, and the pod's policies", PATIENCE, || {
            let (services, _) = site.tables()?.services()?;
            ensure!(services >= population().services, "{services} frontends");
            let (admitted, expected) = (site.admitted()?, of_application(population().admitted(0).0));
            ensure!(admitted == expected, "policy 0 lets in {admitted:?}, not {expected:?}");
            Ok(())
        })?;
        Ok(site)
    }

    fn tables(&self) -> Result<Tables> {
        Tables::of(self.bed.node(1))
    }

    /// Every Service's backends.
    fn backends(&self) -> Result<BTreeMap<SocketAddr, Option<Vec<SocketAddr>>>> {
        let (tables, population) = (self.tables()?, population());
        let vips = (0..population.services).map(|service| SocketAddr::from((population.vip(service), 80)));
        vips.map(|vip| Ok((vip, tables.backends(vip)?))).collect()
    }

    /// Which remote pods the local one lets in on the port of its first policy.
    fn admitted(&self) -> Result<Vec<usize>> {
        let side = self.local.attachment().interface(false)?;
        let name = side["name"].as_str().unwrap_or_default();
        let path = self.bed.node(1).machine().path(format!("/sys/class/net/{name}/ifindex"));
        let ifindex = std::fs::read_to_string(path)?.trim().parse()?;
        let (tables, population) = (self.tables()?, population());
        let (_, port) = population.admitted(0);
        let mut admitted = Vec::new();
        for pod in 0..population.remote_pods() {
            if tables.admits(ifindex, population.remote_addresses(pod).0.into(), port)? {
                admitted.push(pod);
            }
        }
        Ok(admitted)
    }

    /// Kills the agent under a stream of the pod to the outside, and starts it again.
    fn restart_loses_nothing(&self) -> Result<()> {
        let (node, outside) = (self.bed.node(1), self.bed.outside());
        outside.serve("outside", OUTSIDE)?;
        let server = outside.address_for(self.local.v4()?);
        let script = format!("weft-probe stream tcp {server}:{OUTSIDE} --rate 1000 --seconds {}", RECORDS / 1000);
        let job = self.local.start("restart", &script)?;
        job.prints(&self.local, "STREAMING", Duration::from_secs(10))?;
        let (backends, admitted) = (self.backends()?, self.admitted()?);
        node.stop_agent(Signal::SIGKILL)?;
        node.start_agent()?;
        node.agent_ready()?;
        for (vip, now) in self.backends()? {
            let before = backends.get(&vip);
            ensure!(before == Some(&now), "{vip} leads to {now:?} after a restart, not {before:?}");
        }
        let now = self.admitted()?;
        ensure!(admitted == now, "pods that are let in after a restart are {now:?}, not {admitted:?}");
        let outcome = job.finish(&self.local, Duration::from_secs(90))?;
        let all = format!("sent {RECORDS} received {RECORDS} lost 0");
        ensure!(
            outcome.status == 0 && outcome.output.contains(&all),
            "{}\n{}",
            outcome.output,
            node.sh("weft drops")?.output
        );
        Ok(())
    }
}

/// The remote pods of an application.
fn of_application(app: usize) -> Vec<usize> {
    let population = population();
    (0..population.remote_pods()).filter(|pod| population.app(*pod) == app).collect()
}

/// Waits until both say the same; what they say.
fn same<T: PartialEq + std::fmt::Debug>(one: &Site, other: &Site, what: impl Fn(&Site) -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        let (first, second) = (what(one)?, what(other)?);
        if first == second {
            return Ok(first);
        }
        ensure!(start.elapsed() < PATIENCE, "{first:?}\nis not\n{second:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_server_and_a_folder_of_the_same_objects_make_the_same_maps() -> Result<()> {
    let (served, placed) = (Site::served()?, Site::placed()?);
    let population = population();
    let backends = same(&served, &placed, Site::backends)?;
    let expected = |service| {
        let mut all: Vec<SocketAddr> =
            population.backends(service).map(|pod| (population.remote_addresses(pod).0, 8080).into()).collect();
        all.sort_unstable();
        all
    };
    for service in 0..population.services {
        let found = &backends[&SocketAddr::from((population.vip(service), 80))];
        ensure!(found.as_ref() == Some(&expected(service)), "Service {service}: {found:?}");
    }
    let admitted = same(&served, &placed, Site::admitted)?;
    ensure!(admitted == of_application(population.admitted(0).0), "{admitted:?}");
    Ok(())
}

#[test]
fn an_agent_that_is_killed_under_a_server_loses_nothing() -> Result<()> {
    Site::served()?.restart_loses_nothing()
}

#[test]
fn an_agent_that_is_killed_over_a_folder_loses_nothing() -> Result<()> {
    Site::placed()?.restart_loses_nothing()
}
