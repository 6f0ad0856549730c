// SPDX-License-Identifier: Apache-2.0

//! Weft's node: pods with a policy, among many Services.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use weft_dataplane::MapSizes;
use weft_testbed::{
    Bed, Binaries, Container, Options, Tables,
    apiserver::{ApiServer, Kind, Population},
    load, pod,
};

use super::super::net::{a_rule_each_way, pods};
use super::{
    objects::{LOAD, Size, put},
    wire::{self, TURNS},
};

/// For what takes long with 50,000 Services.
const PATIENCE: Duration = Duration::from_secs(120);

/// A node of Weft with all Services in its maps.
pub(super) struct Site {
    // Before the bed: pods are unplugged while their agent is there.
    pub(super) client: Container,
    pub(super) servers: [Container; 2],
    stranger: Container,
    pub(super) bed: Bed,
    pub(super) server: Arc<ApiServer>,
    pub(super) population: Population,
    /// Of the pods' devices.
    pub(super) mtu: u32,
}

impl Site {
    /// Starts the agent, plugs the pods in, and waits until policy is on and the last Service is in the maps.
    pub(super) fn new(size: Size) -> Result<Self> {
        eprintln!("Weft: {} Services of {} endpoints beside the measured one", size.services, size.endpoints);
        let server = Arc::new(ApiServer::new());
        let population = size.population("node1");
        population.install(&server);
        let config = serde_json::json!({"mapSizes": sizes(size)});
        let bed = server.site(&Options { nodes: 1, config, ..Options::default() }, &Binaries::released()?)?;
        server.put(Kind::NetworkPolicies, a_rule_each_way(&pods(), &pods()))?;
        for name in ["default/client", "default/one", "default/two", "elsewhere/stranger"] {
            server.put(Kind::Pods, pod(name, "node1", &[]))?;
        }
        bed.node(1).start_agent()?;
        bed.node(1).agent_ready()?;
        let plug = |name| Container::new(bed.node(1), name);
        let (client, stranger) = (plug("default/client")?, plug("elsewhere/stranger")?);
        let servers = [plug("default/one")?, plug("default/two")?];
        let mtu = load::mtu(&client)?;
        let site = Self { client, servers, stranger, bed, server, population, mtu };
        put(&site.server, &LOAD, "node1", &[site.address(0)?])?;
        load::serve(&site.servers[0], LOAD.port, TURNS)?;
        site.wait_complete().with_context(|| site.bed.node(1).agent_log())?;
        Ok(site)
    }

    /// Of a server.
    pub(super) fn address(&self, number: usize) -> Result<Ipv4Addr> {
        let IpAddr::V4(address) = self.servers[number].v4()? else { bail!("no IPv4 address") };
        Ok(address)
    }

    /// A pod's network namespace, as this process reaches it.
    pub(super) fn network(&self, pod: &Container) -> PathBuf {
        self.bed.node(1).machine().path(&pod.attachment().netns)
    }

    /// Where the load is.
    pub(super) fn to(&self) -> SocketAddr {
        SocketAddr::new(LOAD.vip.into(), LOAD.port)
    }

    fn wait_complete(&self) -> Result<()> {
        let served = wire::await_served(&self.network(&self.client), self.to(), PATIENCE)?;
        served.context("the Service is not served")?;
        let start = Instant::now();
        let (tables, stranger) = (Tables::of(self.bed.node(1))?, self.network(&self.stranger));
        while !self.is_complete(&tables)? || wire::is_served(&stranger, self.to())? {
            ensure!(start.elapsed() < PATIENCE, "Services or policies are missing");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Whether the maps have all Services, and the last one its backends.
    pub(super) fn is_complete(&self, tables: &Tables) -> Result<bool> {
        let Population { services, endpoints, .. } = self.population;
        let Some(last) = services.checked_sub(1) else { return Ok(true) };
        let backends = tables.backends(SocketAddr::new(self.population.vip(last).into(), 80)).ok().flatten();
        Ok(backends.is_some_and(|found| found.len() == endpoints) && tables.services()?.0 > services)
    }
}

/// Where the programs' own sizes are too small: a set of backends that changes is there twice.
fn sizes(size: Size) -> MapSizes {
    let usual = MapSizes::default();
    let members = u32::try_from(size.services * size.endpoints + (1 << 15)).unwrap_or(u32::MAX);
    if members <= usual.members { usual } else { MapSizes { members: members.next_power_of_two(), ..usual } }
}
