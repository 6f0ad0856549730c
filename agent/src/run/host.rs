// SPDX-License-Identifier: Apache-2.0
//! The node's own devices with their addresses and programs, its routes, and the ways to other nodes.
//!
//! | File | What it does |
//! |---|---|
//! | `cidrs` | the node's pod CIDRs, at a start and when they change |
//! | `repair` | puts back what others change |

mod api_servers;
mod cidrs;
mod repair;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use anyhow::{Context as _, Result};
use weft_dataplane::{Dataplane, Program};

pub(super) use self::api_servers::ApiServers;
pub(super) use self::cidrs::{First, first as first_pod_cidrs};
pub(super) use self::repair::{has_moved_unseen, state_path};
use crate::{
    device::{self, DeviceConfig, Devices, Observation},
    model::{HostRoute, Mode, NextHop, NodeFacts, ObjectKey, Refusal, RefusedKind, Snapshot},
    run::told::mended,
    serve::{Shared, metrics::Mended},
    watch::NodeRecord,
};

/// See the module.
pub(super) struct Host {
    config: DeviceConfig,
    api_servers: ApiServers,
    observation: Observation,
    ways: Ways,
    routes: Routes,
    /// Devices that had programs at the last look.
    served: BTreeSet<u32>,
    /// Which [`Observation::state`] is written down.
    saved_state: Option<u64>,
    /// See [`Host::set_announced`].
    announced: bool,
    /// Why other nodes do not find pods of configured pod CIDRs.
    contradiction: Option<String>,
}

/// Native mode: nodes whose next hops were looked up, and as of when.
#[derive(Default)]
struct Ways {
    nodes: Vec<IpAddr>,
    as_of: Option<u64>,
}

/// The host's routes.
#[derive(Default)]
struct Routes {
    /// Those of the last pass.
    planned: Option<Arc<Vec<HostRoute>>>,
    /// They were all set when they were last looked at.
    stand: bool,
}

impl Host {
    pub(super) fn new(config: DeviceConfig, observation: Observation, api_servers: ApiServers) -> Self {
        repair::warn_of(observation.problems.iter());
        Self {
            config: DeviceConfig { pool_devices: observation.pool_devices.clone(), ..config },
            api_servers,
            observation,
            ways: Ways::default(),
            routes: Routes::default(),
            served: BTreeSet::new(),
            saved_state: None,
            announced: false,
            contradiction: None,
        }
    }

    /// Why external addresses of Services are not served for the host.
    pub(super) fn api_server_problem(&self) -> Option<String> {
        self.api_servers.problem().filter(|_| self.config.exposure.external_from_node)
    }

    pub(super) const fn facts(&self) -> &NodeFacts {
        &self.observation.facts
    }

    /// MTU of workloads.
    pub(super) const fn pod_mtu(&self) -> u32 {
        self.observation.pod_mtu
    }

    /// Name of the device that leads out.
    pub(super) fn uplink(&self) -> &str {
        &self.observation.uplink.name
    }

    /// The devices by which packets come from outside.
    pub(super) const fn devices(&self) -> &Devices {
        &self.observation.devices
    }

    /// What is wrong with its devices and pod CIDRs.
    pub(super) fn problems(&self) -> impl Iterator<Item = &String> {
        self.observation.problems.iter().chain(&self.contradiction)
    }

    /// What keeps workloads from leaving the node, for its Events.
    pub(super) fn refusal(&self) -> Option<Refusal> {
        let closed = &self.observation.closed;
        let name = &self.config.node_name;
        (!closed.is_empty()).then(|| Refusal {
            kind: RefusedKind::Node,
            key: ObjectKey::new("", name),
            // As kubelet names it, and `kubectl describe` looks for it.
            uid: Some(name.clone()),
            why: closed.join("; "),
        })
    }

    /// Nothing of it stands against being ready.
    pub(super) const fn is_announced(&self) -> bool {
        self.announced
    }

    /// Its programs are attached, its overlay is up, and the runtime was told; until its devices are others.
    pub(super) const fn set_announced(&mut self) {
        self.announced = true;
    }

    /// What other nodes are told of this one, where no API server does it.
    pub(super) fn record(&self) -> NodeRecord {
        let Observation { node_v4, node_v6, .. } = &self.observation;
        NodeRecord {
            name: self.config.node_name.clone(),
            pod_cidrs: self.config.all_pod_cidrs().copied().collect(),
            addresses: node_v4.map(IpAddr::from).into_iter().chain(node_v6.map(IpAddr::from)).collect(),
        }
    }

    /// Native mode: routers between nodes, if any. Looked up when the nodes change, and at every look at the node.
    pub(super) async fn find_next_hops(&mut self, shared: &Shared) -> Result<()> {
        if self.config.mode != Mode::Native {
            return Ok(());
        }
        let (as_of, nodes) = {
            let planner = shared.planner();
            let as_of = planner.versions().nodes;
            if self.ways.as_of == Some(as_of) {
                return Ok(());
            }
            (as_of, node_addresses(planner.snapshot()))
        };
        if self.ways.nodes != nodes {
            self.observation.facts.next_hops = self.look_up_next_hops(&nodes).await?;
            self.ways.nodes = nodes;
        }
        self.ways.as_of = Some(as_of);
        Ok(())
    }

    /// How these nodes are reached now.
    async fn look_up_next_hops(&self, nodes: &[IpAddr]) -> Result<BTreeMap<IpAddr, NextHop>> {
        let Observation { facts, uplink, .. } = &self.observation;
        let hops = device::next_hops(uplink, nodes, &facts.next_hops).await;
        hops.context("cannot look for the way to other nodes")
    }

    /// Sets the routes of the plan, where they are others or do not stand.
    pub(super) async fn put_routes(&mut self, shared: &Shared) -> Result<()> {
        let (wanted, same) = {
            let planner = shared.planner();
            let wanted = &planner.desired().host_routes;
            let same = self.routes.planned.as_ref() == Some(wanted);
            if self.routes.stand && same {
                return Ok(());
            }
            (wanted.clone(), same)
        };
        let result = match &self.routes.planned {
            Some(standing) if self.routes.stand => {
                device::follow_routes(&self.observation, standing, &wanted).await.map(drop)
            }
            _ => {
                let (changes, result) = device::repair_routes(&self.observation, &wanted).await;
                if same {
                    mended(&shared.work, Mended::Routes, changes.count());
                }
                result
            }
        };
        self.routes = Routes { planned: Some(wanted), stand: result.is_ok() };
        result.context("cannot set the host's routes")
    }

    /// The programs of the node's own devices, with name and index of each.
    fn programs(&self) -> Vec<(Program, String, u32)> {
        let config = self.facts().config;
        let own = [
            (Program::FromHost, device::HOST_PORT.to_owned(), config.host_ifindex),
            (Program::FromOverlay, device::OVERLAY.to_owned(), config.overlay_ifindex),
        ];
        let heard = self.devices().heard.iter().map(|heard| {
            (if heard.ethernet { Program::FromUplink } else { Program::FromL3 }, heard.name.clone(), heard.index)
        });
        own.into_iter().chain(heard).filter(|(_, _, ifindex)| *ifindex != 0).collect()
    }

    pub(super) fn attach_programs(&mut self, dataplane: &mut Dataplane) -> Result<()> {
        let programs = self.programs();
        self.served = programs.iter().map(|(_, _, ifindex)| *ifindex).collect();
        let config = self.facts().config;
        let own = [config.uplink_ifindex, config.host_ifindex, config.overlay_ifindex];
        let (needed, others): (Vec<_>, Vec<_>) =
            programs.into_iter().partition(|(_, _, ifindex)| own.contains(ifindex));
        if let Err(error) = Self::attach(&others, dataplane) {
            // Devices of others come and go at any time; the next look at the node tries again, and names what is left.
            tracing::warn!("{error:#}");
        }
        Self::attach(&needed, dataplane)
    }

    /// A device that refuses, or is gone by now, keeps no other from its program.
    fn attach(programs: &[(Program, String, u32)], dataplane: &mut Dataplane) -> Result<()> {
        let mut outcome = Ok(());
        for (program, ifname, ifindex) in programs {
            let attached = dataplane.attach(*program, ifname, *ifindex);
            let attached = attached.with_context(|| format!("cannot attach {program} to {ifname}"));
            outcome = outcome.and(attached);
        }
        outcome
    }

    /// Brings the overlay up, once its programs are attached; whether it was down.
    pub(super) async fn open_overlay(&self) -> Result<bool> {
        device::open_overlay(&self.config).await.context("cannot bring the overlay up")
    }

    /// Detaches programs from devices that are neither the node's nor one of these ports, any more.
    pub(super) fn detach_strays(&self, dataplane: &mut Dataplane, ports: impl Iterator<Item = u32>) -> Result<()> {
        let wanted: BTreeSet<u32> = ports.chain(self.programs().into_iter().map(|(_, _, ifindex)| ifindex)).collect();
        let attached: BTreeSet<u32> = dataplane.attachments()?.into_iter().map(|found| found.ifindex).collect();
        for ifindex in attached.difference(&wanted) {
            tracing::info!(ifindex, "detaching programs from a device that is not ours any more");
            dataplane.detach(*ifindex)?;
        }
        Ok(())
    }
}

/// The first internal address of each family of all nodes: those that lead to their pods.
fn node_addresses(snapshot: &Snapshot) -> Vec<IpAddr> {
    let statuses = snapshot.nodes.values().filter_map(|node| node.status.as_ref());
    let of_node = statuses.flat_map(|status| {
        let all = status.addresses.iter().flatten().filter(|address| address.type_ == "InternalIP");
        let mut all = all.filter_map(|address| address.address.parse().ok());
        let first: Option<IpAddr> = all.next();
        let other = all.find(|address| Some(address.is_ipv4()) != first.map(|first| first.is_ipv4()));
        first.into_iter().chain(other)
    });
    of_node.collect()
}
