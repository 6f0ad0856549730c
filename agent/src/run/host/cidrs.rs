// SPDX-License-Identifier: Apache-2.0
//! The node's pod CIDRs: configured, else those of its Node object. The Node object wins over what the node had before, which
//! counts only while the API server is silent, and until it has told of the Node where an earlier agent has left what goes on
//! meanwhile ([`crate::run::interim`]).
//!
//! A change is followed while the agent runs, and over a restart: new workloads get addresses of the new pod CIDRs. Those that
//! have addresses of the old ones go on, with their gateway, their routes and their entries, until they are gone; other nodes
//! know only what the Node object says, so that such workloads are named.

use std::{fs, net::IpAddr, time::Duration};

use anyhow::{Context as _, Result, bail};
use ipnet::IpNet;
use tokio::time::timeout;

use super::Host;
use crate::{
    config::{Config, Source},
    device::{self, DeviceConfig},
    file,
    model::{Attachment, ObjectKey, Snapshot, Standing, address::parse_ip},
    run::{
        interim,
        memory::{self, NodeMemory},
        ports::Ports,
        told::source_state,
    },
    serve::Shared,
    watch::Feed,
};

/// How long a source that says nothing, not even an error, is waited for where the node had pod CIDRs before.
const PATIENCE: Duration = Duration::from_secs(10);
/// Workloads that are named for their old addresses, at most.
const NAMED: usize = 10;

/// The pod CIDRs to start with.
pub(in crate::run) struct First {
    pub(in crate::run) memory: NodeMemory,
    /// They are an earlier agent's word, and the source was not waited for.
    pub(in crate::run) is_assumed: bool,
}

/// Tells the pod CIDRs to start with: those of an earlier agent, where it has left what goes on meanwhile.
///
/// # Errors
/// The source has ended, or they cannot be kept.
pub(in crate::run) async fn first(config: &Config, shared: &Shared, feed: &mut Feed) -> Result<First> {
    let mut before: NodeMemory = memory::load(&memory::node_path(&config.state_dir));
    if config.source != Source::Kubernetes {
        before.addresses.clear();
    }
    if !config.pod_cidrs.is_empty() {
        let memory = keep(config, before.followed_by(config.pod_cidrs.clone()))?;
        return Ok(First { memory, is_assumed: false });
    }
    let is_assumed =
        !before.pod_cidrs.is_empty() && config.source == Source::Kubernetes && interim::path(&config.run_dir).exists();
    let memory = if is_assumed { before } else { told(config, shared, feed, before).await? };
    Ok(First { memory, is_assumed })
}

/// Waits for the source's word on the pod CIDRs; what is known from `before` counts where it does not answer.
async fn told(config: &Config, shared: &Shared, feed: &mut Feed, before: NodeMemory) -> Result<NodeMemory> {
    let known = !before.pod_cidrs.is_empty();
    loop {
        shared.planner_mut().take(feed.take());
        let (found, addresses, snapshot) = {
            let planner = shared.planner();
            let snapshot = planner.snapshot();
            let found = node_pod_cidrs(snapshot, &config.node_name);
            (found, told_addresses(config, snapshot), snapshot.standing())
        };
        if !found.is_empty() {
            return keep(config, NodeMemory { addresses, ..before.followed_by(found) });
        }
        if known && (snapshot.synced || snapshot.error.is_some()) {
            return Ok(before);
        }
        shared.publish(|view| {
            view.source = Some(source_state(config, &snapshot));
            view.not_ready = Some(no_pod_cidrs(config, &snapshot));
        });
        match timeout(PATIENCE, feed.changed()).await {
            Ok(true) => {}
            Ok(false) => bail!("the object source has ended"),
            Err(_) if known => return Ok(before),
            Err(_) => {}
        }
    }
}

impl NodeMemory {
    /// As the node is once it has these pod CIDRs.
    fn followed_by(&self, pod_cidrs: Vec<IpNet>) -> Self {
        let all = self.pod_cidrs.iter().chain(&self.retired);
        let mut retired: Vec<IpNet> = all.filter(|cidr| !pod_cidrs.contains(cidr)).copied().collect();
        retired.sort_unstable();
        retired.dedup();
        Self { pod_cidrs, retired, addresses: self.addresses.clone() }
    }
}

fn keep(config: &Config, memory: NodeMemory) -> Result<NodeMemory> {
    fs::create_dir_all(&config.state_dir).context("stateDir: cannot create")?;
    file::save(&memory::node_path(&config.state_dir), &memory)?;
    Ok(memory)
}

fn no_pod_cidrs(config: &Config, snapshot: &Standing) -> String {
    let Config { node_name, source, .. } = config;
    match &snapshot.error {
        Some(error) => format!("{source} does not answer: {error}"),
        None if !snapshot.synced => format!("{source}: not synced yet"),
        None => format!(
            "the Node {node_name} has no spec.podCIDRs; set them there (kube-controller-manager: --allocate-node-cidrs), or \
             set podCIDRs in the agent's configuration"
        ),
    }
}

/// The Node object's pod CIDRs: the first of each family, as the API has it.
fn node_pod_cidrs(snapshot: &Snapshot, name: &str) -> Vec<IpNet> {
    let spec = snapshot.nodes.get(&ObjectKey::new("", name)).and_then(|node| node.spec.as_ref());
    let cidrs = spec.into_iter().flat_map(|spec| match &spec.pod_cidrs {
        Some(cidrs) if !cidrs.is_empty() => cidrs.clone(),
        _ => spec.pod_cidr.clone().into_iter().collect(),
    });
    let mut found: Vec<IpNet> = Vec::new();
    for cidr in cidrs.filter_map(|cidr| cidr.parse::<IpNet>().ok()) {
        if !found.iter().any(|known| known.addr().is_ipv4() == cidr.addr().is_ipv4()) {
            found.push(cidr.trunc());
        }
    }
    found
}

/// The internal addresses of the Node object, where an API server has it: in a folder they are what the agent itself has told.
fn told_addresses(config: &Config, snapshot: &Snapshot) -> Vec<IpAddr> {
    let node =
        snapshot.nodes.get(&ObjectKey::new("", &config.node_name)).filter(|_| config.source == Source::Kubernetes);
    let addresses = node.and_then(|node| node.status.as_ref()).and_then(|status| status.addresses.as_deref());
    let internal = addresses.unwrap_or_default().iter().filter(|address| address.type_ == "InternalIP");
    internal.filter_map(|address| parse_ip(&address.address)).collect()
}

impl Host {
    /// Takes the Node object's addresses over; the next look at the node goes by them.
    pub(in crate::run) fn follow_addresses(&mut self, config: &Config, shared: &Shared) {
        let told = told_addresses(config, shared.planner().snapshot());
        if !told.is_empty() && told != self.config.told_addresses {
            tracing::info!(addresses = ?told, "the Node object has other addresses");
            self.config.told_addresses = told;
            if let Err(error) = keep(config, self.memory()) {
                tracing::warn!(error = format!("{error:#}"), "cannot keep the node's addresses for the next start");
            }
        }
    }

    fn memory(&self) -> NodeMemory {
        let DeviceConfig { pod_cidrs, retired_pod_cidrs, told_addresses, .. } = &self.config;
        NodeMemory {
            pod_cidrs: pod_cidrs.clone(),
            retired: retired_pod_cidrs.clone(),
            addresses: told_addresses.clone(),
        }
    }

    /// Takes other pod CIDRs of the Node object over, and lets go of old ones that nobody has addresses of any more.
    ///
    /// # Errors
    /// They do not fit, or the node's devices cannot follow; the next pass tries again.
    pub(in crate::run) async fn follow_pod_cidrs(
        &mut self,
        config: &Config,
        shared: &Shared,
        ports: &mut Ports,
    ) -> Result<()> {
        let before = self.memory();
        let found = {
            let planner = shared.planner();
            let snapshot = planner.snapshot();
            self.contradiction = contradiction(config, snapshot);
            let counts = config.pod_cidrs.is_empty() && snapshot.synced && snapshot.remembered.is_none();
            if counts { node_pod_cidrs(snapshot, &config.node_name) } else { Vec::new() }
        };
        let mut after = if found.is_empty() { before.clone() } else { before.followed_by(found) };
        after.retired.retain(|cidr| ports.records().any(|record| has_address_in(record, cidr)));
        if after == before {
            return Ok(());
        }
        let wanted = DeviceConfig {
            pod_cidrs: after.pod_cidrs.clone(),
            retired_pod_cidrs: after.retired.clone(),
            ..self.config.clone()
        };
        let named = || format!("Node {}: spec.podCIDRs: the node keeps those that it has", config.node_name);
        wanted.check().with_context(named)?;
        let mut observation = device::apply(&wanted).await.with_context(named)?;
        observation.facts.next_hops.clone_from(&self.observation.facts.next_hops);
        tracing::info!(pod_cidrs = ?after.pod_cidrs, retired = ?after.retired, "the node's pod CIDRs have changed");
        if after.pod_cidrs != before.pod_cidrs {
            ports.set_pod_cidrs(&after.pod_cidrs);
        }
        (self.config, self.observation) = (wanted, observation);
        self.routes.stand = false;
        keep(config, after).map(drop)
    }

    /// Workloads with addresses of pod CIDRs that are the node's no more.
    pub(in crate::run) fn old_addresses(&self, ports: &Ports) -> Vec<String> {
        let DeviceConfig { pod_cidrs, retired_pod_cidrs, .. } = &self.config;
        let current: Vec<String> = pod_cidrs.iter().map(ToString::to_string).collect();
        let problem = |cidr: &IpNet| {
            let having: Vec<String> =
                ports.records().filter(|record| has_address_in(record, cidr)).map(|record| name_of(record)).collect();
            let more = if having.len() > NAMED { " and others" } else { "" };
            let named = having[..having.len().min(NAMED)].join(", ");
            (!having.is_empty()).then(|| {
                format!(
                    "pod CIDR {cidr} is this node's no more (now {}): {named}{more} keep addresses of it and work here; other \
                     nodes may not find them: make them anew",
                    current.join(", ")
                )
            })
        };
        retired_pod_cidrs.iter().filter_map(problem).collect()
    }
}

/// Configured pod CIDRs that the Node object does not have: other nodes go by the object, and this node by its configuration.
fn contradiction(config: &Config, snapshot: &Snapshot) -> Option<String> {
    if config.source != Source::Kubernetes || !snapshot.synced {
        return None;
    }
    let told = node_pod_cidrs(snapshot, &config.node_name);
    let texts = |cidrs: &mut dyn Iterator<Item = &IpNet>| cidrs.map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let alone = texts(&mut config.pod_cidrs.iter().filter(|cidr| !told.contains(cidr)));
    (!alone.is_empty() && !told.is_empty()).then(|| {
        format!(
            "podCIDRs: {alone} is configured here, but the Node {} has spec.podCIDRs {}, which other nodes go by: they do not find \
             workloads with addresses of it; configure the Node's, or leave the key out",
            config.node_name,
            texts(&mut told.iter())
        )
    })
}

fn name_of(record: &Attachment) -> String {
    match &record.spec.pod {
        Some(pod) => format!("{}/{}", pod.namespace, pod.name),
        None => record.spec.id.to_string(),
    }
}

fn has_address_in(record: &Attachment, cidr: &IpNet) -> bool {
    let mut addresses = record.allocation.addresses.iter().map(|assigned| assigned.address.addr());
    addresses.any(|address: IpAddr| cidr.contains(&address))
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Instant};

    use serde_json::{from_value, json};

    use super::*;
    use crate::{model::Deltas, serve::View, watch::channel};

    fn snapshot(pod_cidrs: &[&str], error: Option<&str>) -> Snapshot {
        let node = json!({"metadata": {"name": "here"}, "spec": {"podCIDRs": pod_cidrs}});
        let nodes = [(ObjectKey::new("", "here"), Arc::new(from_value(node).unwrap()))];
        let nodes = if pod_cidrs.is_empty() { [].into() } else { nodes.into() };
        Snapshot { nodes, synced: error.is_none(), error: error.map(str::to_owned), ..Snapshot::default() }
    }

    fn cidrs(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    async fn first_of(config: &Config, snapshot: Snapshot) -> NodeMemory {
        let (teller, mut feed) = channel();
        teller.tell(Instant::now(), |deltas, standing| {
            (*deltas, *standing) = (Deltas::whole(&snapshot), snapshot.standing());
            true
        });
        let (shared, _commands) = Shared::new(View::default());
        first(config, &shared, &mut feed).await.unwrap().memory
    }

    #[test]
    fn pod_cidrs_that_other_nodes_do_not_know_are_told() {
        let of = |configured: &[&str], told: &[&str]| {
            let config = Config { node_name: "here".into(), pod_cidrs: cidrs(configured), ..Config::default() };
            contradiction(&config, &snapshot(told, None))
        };
        let problem = of(&["10.2.0.0/24", "fd00:1::/64"], &["10.1.0.0/24", "fd00:1::/64"]).unwrap();
        assert!(problem.starts_with("podCIDRs: 10.2.0.0/24 is configured here"), "{problem}");
        assert!(problem.contains("10.1.0.0/24, fd00:1::/64"), "{problem}");
        assert_eq!(of(&["fd00:1::/64"], &["10.1.0.0/24", "fd00:1::/64"]), None);
        assert_eq!(of(&[], &["10.1.0.0/24"]), None);
        assert_eq!(of(&["10.2.0.0/24"], &[]), None, "nothing to go by");
    }

    #[tokio::test]
    async fn the_node_object_wins_over_what_the_node_had_and_the_old_pod_cidr_stays_for_who_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config { node_name: "here".into(), state_dir: dir.path().join("state"), ..Config::default() };
        let found = first_of(&config, snapshot(&["10.1.0.0/24", "fd00:1::/64", "10.9.0.0/24"], None)).await;
        assert_eq!((found.pod_cidrs, found.retired), (cidrs(&["10.1.0.0/24", "fd00:1::/64"]), vec![]));
        let found = first_of(&config, snapshot(&["10.2.0.0/24", "fd00:1::/64"], None)).await;
        let expected = (cidrs(&["10.2.0.0/24", "fd00:1::/64"]), cidrs(&["10.1.0.0/24"]));
        assert_eq!((found.pod_cidrs, found.retired), expected);
        let found = first_of(&config, snapshot(&[], Some("refused"))).await;
        assert_eq!((found.pod_cidrs, found.retired), expected, "a silent server: as it was");
        let found = first_of(&config, snapshot(&["10.1.0.0/24"], None)).await;
        let expected = (cidrs(&["10.1.0.0/24"]), cidrs(&["10.2.0.0/24", "fd00:1::/64"]));
        assert_eq!((found.pod_cidrs, found.retired), expected, "and back");
    }
}
