// SPDX-License-Identifier: Apache-2.0

//! The node, its pods, and what waits for them.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::unistd::{SysconfVar, sysconf};
use serde_json::json;
use weft_testbed::{
    Bed, Binaries, Container, Options, Shell as _, Tables,
    apiserver::{ApiServer, Kind, Population},
};

/// For what takes minutes at upstream's limits.
const PATIENCE: Duration = Duration::from_secs(600);
/// Between two looks at the maps: well below what is measured, and little of a processor.
const LOOK: Duration = Duration::from_micros(50);
/// The port of a server beyond the cluster.
pub(super) const OUTSIDE: u16 = 8080;
/// Local pods that are plugged in at most.
const PLUGGED: usize = 30;

/// A node of the cluster with its pods plugged in, everything in its maps.
pub(super) struct Site {
    // Before the bed: workloads are unplugged while their agent is there.
    pub(super) pods: Vec<Container>,
    pub(super) bed: Bed,
    pub(super) server: Arc<ApiServer>,
    pub(super) population: Population,
}

impl Site {
    /// Starts the agent, plugs the pods in, and waits until their policies are in force.
    pub(super) fn new(population: &Population) -> Result<Self> {
        let Population { nodes, services, endpoints, policies, .. } = *population;
        eprintln!(
            "a cluster of {nodes} nodes, {} pods, {services} Services x {endpoints}, {policies} policies",
            population.pods()
        );
        let server = Arc::new(ApiServer::new());
        population.install(&server);
        let config = json!({"mapSizes": sizes(population)});
        let bed = server.site(&Options { nodes: 1, config, ..Options::default() }, &Binaries::released()?)?;
        bed.outside().serve("outside", OUTSIDE)?;
        let mut site = Self { pods: Vec::new(), bed, server, population: population.clone() };
        site.bed.node(1).start_agent()?;
        eprintln!("the agent's first start");
        site.wait("the agent is ready", || Ok(site.bed.node(1).weft("status").is_ok()))?;
        for number in 0..population.pods_per_node.min(PLUGGED) {
            let key = population.local_pod(number);
            site.pods.push(Container::new(site.bed.node(1), &format!("{}/{}", key.namespace, key.name))?);
        }
        let tables = site.tables()?;
        site.wait("everything is in the maps", || site.is_complete(&tables))?;
        Ok(site)
    }

    /// The maps of the agent that runs now.
    pub(super) fn tables(&self) -> Result<Tables> {
        Tables::of(self.bed.node(1))
    }

    /// Looks until `done`, closely.
    pub(super) fn wait(&self, what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<Instant> {
        let start = Instant::now();
        loop {
            if done()? {
                return Ok(Instant::now());
            }
            if start.elapsed() > PATIENCE {
                bail!("never: {what}\n{}", self.bed.node(1).agent_log());
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Whether the maps have all Services and backends, and every pod here the first of its policies.
    pub(super) fn is_complete(&self, tables: &Tables) -> Result<bool> {
        let Population { services, policies, .. } = self.population;
        let last = self.vip(services - 1);
        let whole = tables.backends(last).ok().flatten().is_some_and(|backends| !backends.is_empty());
        if !whole || tables.services()?.0 < services {
            return Ok(false);
        }
        for (number, pod) in self.pods.iter().enumerate().take(policies) {
            let (app, port) = self.population.admitted(number);
            let peer = self.peer(app);
            if !tables.is_port(ifindex(self, pod)?)? || !tables.admits(ifindex(self, pod)?, peer, port)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The address of Service `number`.
    pub(super) fn vip(&self, number: usize) -> SocketAddr {
        (self.population.vip(number), 80).into()
    }

    /// An address of a pod of application `app`.
    pub(super) fn peer(&self, app: usize) -> IpAddr {
        self.population.remote_addresses(app * self.population.endpoints).0.into()
    }

    /// Bytes that went to the agent.
    pub(super) fn bytes(&self) -> u64 {
        Kind::ALL.iter().map(|kind| self.server.bytes(*kind)).map(|(lists, watches)| lists + watches).sum()
    }

    /// Seconds of CPU that the agent has used.
    pub(super) fn cpu(&self) -> Result<f64> {
        let path = format!("/proc/{}/stat", self.bed.node(1).agent_pid()?);
        let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        // After the name, which may have spaces: proc(5), fields 3 on; 14 and 15 are utime and stime.
        let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |field: usize| fields.get(field - 3).and_then(|text| text.parse::<f64>().ok());
        let used = ticks(14).zip(ticks(15)).with_context(|| format!("{path}: no times in {text}"))?;
        let second = sysconf(SysconfVar::CLK_TCK)?.context("no CLK_TCK")?;
        Ok((used.0 + used.1) / second as f64)
    }

    /// Megabytes (10^6) of memory that is the agent's own.
    pub(super) fn rss(&self) -> Result<f64> {
        let path = format!("/proc/{}/status", self.bed.node(1).agent_pid()?);
        let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
        Ok(kib.with_context(|| format!("{path}: no RssAnon"))? * 1024.0 / 1e6)
    }
}

/// The device of the host's end of `pod`.
pub(super) fn ifindex(site: &Site, pod: &Container) -> Result<u32> {
    let side = pod.attachment().interface(false)?;
    let name = side["name"].as_str().context("the interface has no name")?;
    let path = site.bed.node(1).machine().path(format!("/sys/class/net/{name}/ifindex"));
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    Ok(text.trim().parse()?)
}

/// Where the programs' own sizes are too small.
fn sizes(population: &Population) -> serde_json::Value {
    let mut sizes = json!({});
    let room = |entries: usize| entries.next_power_of_two();
    let members = population.services * population.endpoints + (1 << 15);
    if members > 1 << 18 {
        sizes["members"] = json!(room(members));
    }
    if population.policies > 1_000 {
        sizes["rules"] = json!(1 << 20);
        // Each policy means pods of an application of its own: as many classes as applications, of which half of the map has room.
        sizes["classes"] = json!(1 << 17);
    }
    sizes
}
