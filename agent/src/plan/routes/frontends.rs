// SPDX-License-Identifier: Apache-2.0
//! The addresses of Services that are in no prefix of Services: each is routed by itself, and follows its Services. One beyond the
//! cluster is not: all of its ports would lead here, also those that are no Service's.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use weft_abi::{Addr, CidrKey, Frontend, FrontendFlags, FrontendKey, Remote, RemoteKind};

use super::{Base, Use, special};
use crate::{
    apply::{Changes, Patch},
    model::{Desired, HostRoute, NodeFacts, Snapshot},
    plan::{address::cidr_key, digest::Digest, services::ports_of},
};

/// Where prefixes and the addresses of Services lead.
#[derive(Debug, Default)]
pub(in crate::plan) struct Routes {
    base: Base,
    /// Addresses of Services that stay unrouted, and why.
    refused: BTreeMap<Addr, String>,
}

/// What an address of a Service needs.
enum Lead {
    /// Nothing: it is in a prefix of Services, or the host has it itself.
    Led,
    /// A way of its own.
    Own,
    Refused(String),
}

type Frontends = BTreeMap<FrontendKey, Frontend>;

impl Routes {
    /// Plans `REMOTES` and the host's routes for these nodes, prefixes and Services, all of them.
    pub(in crate::plan) fn describe(snapshot: &Snapshot, facts: &NodeFacts, frontends: &Frontends) -> (Self, Desired) {
        let mut routes = Self { base: Base::new(snapshot, facts), refused: BTreeMap::new() };
        let Base { remotes, host_routes, reports, .. } = &routes.base;
        let (mut remotes, mut host_routes) = (remotes.clone(), host_routes.clone());
        let addresses: BTreeSet<Addr> = frontends.keys().map(|frontend| frontend.addr).collect();
        for (addr, serves) in addresses.into_iter().filter_map(|addr| Some((addr, Serves::at(frontends, addr)?))) {
            match routes.base.lead_to(addr.into(), serves, facts) {
                Lead::Led => {}
                Lead::Own => {
                    remotes.insert(cidr_key(IpAddr::from(addr).into()), services_remote());
                    host_routes.push(host_route(addr));
                }
                Lead::Refused(why) => drop(routes.refused.insert(addr, why)),
            }
        }
        host_routes.sort();
        let described = Desired {
            routes_digest: remotes.iter().map(|(key, remote)| digest(key, remote)).fold(0, u64::wrapping_add),
            remotes,
            host_routes: Arc::new(host_routes),
            route_reports: reports.clone(),
            ..Desired::default()
        };
        (routes, described)
    }

    /// Follows the Services of `patch`.
    pub(in crate::plan) fn follow(&mut self, facts: &NodeFacts, desired: &mut Desired, patch: &mut Patch) {
        let addresses: BTreeSet<Addr> = patch.frontends.keys().map(|frontend| frontend.addr).collect();
        let before = desired.routes_digest;
        for addr in addresses {
            let serves = Serves::at(&desired.frontends, addr);
            let lead = serves.map(|serves| self.base.lead_to(addr.into(), serves, facts));
            let is_own = matches!(lead, Some(Lead::Own));
            self.refused.remove(&addr);
            if let Some(Lead::Refused(why)) = lead {
                self.refused.insert(addr, why);
            }
            self.set(addr, is_own, desired, &mut patch.remotes);
        }
        if desired.routes_digest != before {
            patch.routes_digest = Some(desired.routes_digest);
        }
    }

    fn set(&self, addr: Addr, is_own: bool, desired: &mut Desired, changes: &mut Changes<CidrKey, Remote>) {
        let key = cidr_key(IpAddr::from(addr).into());
        let remote = if is_own { Some(services_remote()) } else { self.base.remotes.get(&key).copied() };
        let old = desired.remotes.get(&key).copied();
        if old != remote {
            let part = |remote: Option<Remote>| remote.map_or(0, |remote| digest(&key, &remote));
            let digest = desired.routes_digest.wrapping_sub(part(old)).wrapping_add(part(remote));
            desired.routes_digest = digest;
            crate::plan::planner::set(&mut desired.remotes, changes, key, remote);
        }
        let route = host_route(addr);
        let is_of_base = self.base.prefixes.all.contains_key(&route.dst);
        match desired.host_routes.binary_search(&route) {
            Ok(place) if !is_own && !is_of_base => drop(Arc::make_mut(&mut desired.host_routes).remove(place)),
            Err(place) if is_own => Arc::make_mut(&mut desired.host_routes).insert(place, route),
            _ => {}
        }
    }

    /// What is wrong with prefixes, and with addresses of Services; `name`: whose a frontend is.
    pub(in crate::plan) fn problems(
        &self,
        frontends: &Frontends,
        name: impl Fn(&FrontendKey) -> String,
    ) -> Vec<String> {
        let refused = self.refused(frontends).filter_map(|(frontend, addr)| {
            Some(format!("Service {}: {}", name(frontend), self.refusal(frontends, addr)?))
        });
        self.base.problems.iter().cloned().chain(refused).collect()
    }

    /// Frontends at addresses that are refused.
    pub(in crate::plan) fn refused<'f>(
        &self,
        frontends: &'f Frontends,
    ) -> impl Iterator<Item = (&'f FrontendKey, Addr)> {
        let at = |addr: &Addr| frontends.range(ports_of(*addr)).map(|(frontend, _)| (frontend, frontend.addr));
        self.refused.keys().flat_map(at)
    }

    /// Why an address of Services is refused; none: it is not.
    pub(in crate::plan) fn refusal(&self, frontends: &Frontends, addr: Addr) -> Option<String> {
        let why = self.refused.get(&addr)?;
        let what = match Serves::at(frontends, addr)? {
            Serves::ClusterIp => "spec.clusterIPs",
            Serves::External => "external address",
        };
        Some(format!("{what}: {why}"))
    }
}

impl Base {
    /// What is external leads nowhere, and where somebody has the address it is not served (`weft_logic::frontend`).
    fn lead_to(&self, address: IpAddr, serves: Serves, facts: &NodeFacts) -> Lead {
        if serves == Serves::ClusterIp {
            return self.lead(address, facts);
        }
        let whose = match self.prefixes.find(address) {
            Some((net, Use::Services)) => Some(format!("is in {net}, which is for ClusterIPs")),
            Some((net, Use::Pods)) => Some(format!("is in the pod CIDR {net}")),
            None if facts.is_known_by(address) => Some("is what others know this node by".to_owned()),
            None => {
                let key = cidr_key(address.into());
                let is_nodes = self.remotes.get(&key).is_some_and(|remote| remote.kind == RemoteKind::Node as u32);
                is_nodes.then(|| "is an address of another node".to_owned())
            }
        };
        whose.map_or(Lead::Led, |whose| Lead::Refused(format!("{address} {whose}, and is not served")))
    }

    fn lead(&self, address: IpAddr, facts: &NodeFacts) -> Lead {
        let refused = |why: String| {
            Lead::Refused(format!("{address} {why}; the host does not reach it, give the Service another clusterIP"))
        };
        match self.prefixes.find(address) {
            Some((_, Use::Services)) => return Lead::Led,
            Some((net, Use::Pods)) => return refused(format!("is in the pod CIDR {net}")),
            None => {}
        }
        if let Some(whose) = self.reserved.get(&address) {
            return refused(format!("is an address of {whose}"));
        }
        // As a DNS cache of the node has it, on a device of its own.
        if facts.host_addresses.contains(&address) {
            return Lead::Led;
        }
        match special().find(|special| special.contains(&address)) {
            Some(special) => refused(format!("is in {special}, which is for no Service")),
            None => Lead::Own,
        }
    }
}

fn services_remote() -> Remote {
    Remote::new(Addr::UNSPECIFIED, RemoteKind::Services)
}

fn host_route(addr: Addr) -> HostRoute {
    HostRoute { dst: IpAddr::from(addr).into(), via: None }
}

/// What Services serve at an address.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Serves {
    ClusterIp,
    /// External frontends alone: other ports of the address are no matter of theirs.
    External,
}

impl Serves {
    /// None: nothing. NodePorts are at the node's own addresses.
    fn at(frontends: &Frontends, addr: Addr) -> Option<Self> {
        if IpAddr::from(addr).is_unspecified() {
            return None;
        }
        let flags = frontends.range(ports_of(addr)).map(|(_, frontend)| frontend.flags);
        // Those are the host's.
        let mut of_address = flags.filter(|flags| flags & FrontendFlags::HOST_PORT == 0).peekable();
        of_address.peek()?;
        let is_cluster_ip = of_address.any(|flags| flags & FrontendFlags::EXTERNAL == 0);
        Some(if is_cluster_ip { Self::ClusterIp } else { Self::External })
    }
}

/// Of all but the Ethernet address: a flow that remembers another one is decided again by itself. Those of all prefixes are
/// added up.
fn digest(CidrKey { prefix_len, net, addr }: &CidrKey, Remote { via, kind, flags, .. }: &Remote) -> u64 {
    let words =
        [*prefix_len, *net, *kind | u32::from(*flags) << 16].map(u32::to_le).into_iter().chain(addr.0).chain(via.0);
    let bytes: Vec<u8> = words.flat_map(u32::to_ne_bytes).collect();
    Digest::spread(&bytes)
}
