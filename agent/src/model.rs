// SPDX-License-Identifier: Apache-2.0
//! What the rooms of the agent hand to each other.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use weft_abi::{
    Addr, AddressKey, Algorithm, BackendFlags, BackendKey, BlockKey, CidrKey, Class, Config, Device, Frontend,
    FrontendKey, List, Member, Owner, Port, Remote, RuleKey, Run, SocketEnd,
};
use weft_api::{Allocation, AttachmentSpec, Mac, PolicyReport, PortLink, RouteReport, ServiceReport};

use self::address::cidr_key;
use crate::heap;

pub(crate) mod address;
pub(crate) mod algorithm;
mod exposure;
mod labels;
mod name;
pub mod objects;
pub(crate) mod protocol;
pub(crate) mod ring;
mod text_hash;
mod watched;

pub use exposure::{HealthCheck, HealthChecks, NodePortAddress, ServiceExposure};
pub use labels::Labels;
pub(crate) use name::Known;
pub use name::Name;
pub use text_hash::HashKey;
pub(crate) use text_hash::KeyedHash;
pub(crate) use watched::watched_kinds;
pub use watched::{Changed, Deltas, News, Snapshot, Standing};

/// `namespace/name`; cluster-scoped objects have an empty namespace.
#[derive(Clone, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct ObjectKey {
    /// Namespace.
    pub namespace: Name,
    /// Name.
    pub name: Name,
}

impl ObjectKey {
    /// The key of an object with this namespace (empty: cluster-scoped) and name.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: Name::shared(namespace), name: name.into() }
    }
}

/// The objects of one namespace.
pub(crate) fn of_namespace<'m, T>(
    objects: &'m BTreeMap<ObjectKey, T>,
    namespace: &str,
) -> impl Iterator<Item = (&'m ObjectKey, &'m T)> + use<'m, T> {
    let first = ObjectKey::new(namespace, "");
    let namespace = first.namespace.clone();
    objects.range(first..).take_while(move |(key, _)| key.namespace == namespace)
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}

/// How pods of different nodes reach each other.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Encapsulated (RFC 7348).
    #[default]
    Vxlan,
    /// Routed; nodes share a layer 2 segment or the network knows the pod CIDRs.
    Native,
}

/// What the node is, observed from the kernel and the configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeFacts {
    /// The node's name in the API.
    pub name: String,
    /// Encapsulated or routed.
    pub mode: Mode,
    /// The programs' view: devices, masquerade addresses and range, VNI.
    pub config: Config,
    /// This node's pod CIDRs, one per family.
    pub pod_cidrs: Vec<IpNet>,
    /// Devices by which the node hears others, by index.
    pub devices: BTreeMap<u32, Device>,
    /// Every address of the host itself, gateway addresses included.
    pub host_addresses: Vec<IpAddr>,
    /// Addresses that no Service may take from the host: those that others know it by, with a network of theirs, those that
    /// `masqueradeAddresses` lists singly, and its routers'.
    pub reserved: Vec<IpAddr>,
    /// Service CIDRs that are configured; ServiceCIDR objects count beside them.
    pub service_cidrs: Vec<IpNet>,
    /// Prefixes beyond the cluster that workloads reach with their own addresses.
    pub plain_cidrs: Vec<IpNet>,
    /// How another node's address is reached (native mode). Of an address that is missing nothing is known.
    pub next_hops: BTreeMap<IpAddr, NextHop>,
    /// Pods of a node that is a neighbour are heard from that node's Ethernet address only (native mode).
    pub checks_neighbours: bool,
    /// How Services are reached from beyond the cluster.
    pub exposure: ServiceExposure,
    /// Addresses at which the node asks the API server: no Service takes them from the host. None: they are not known, and no Service
    /// takes any from it.
    pub api_servers: Option<Vec<IpAddr>>,
}

impl NodeFacts {
    /// Routers between this node and others.
    fn routers(&self) -> impl Iterator<Item = IpAddr> {
        self.next_hops.values().filter_map(|hop| if let NextHop::Router(via) = hop { Some(*via) } else { None })
    }

    /// Whether an address is this node's or one of its routers'.
    pub(crate) fn is_of_network(&self, address: IpAddr) -> bool {
        self.reserved.contains(&address) || self.routers().any(|router| router == address)
    }

    /// Whether what Services come to is another than by `other`.
    pub(crate) fn serve_otherwise(&self, other: &Self) -> bool {
        (&self.service_cidrs, &self.reserved, &self.api_servers, &self.exposure)
            != (&other.service_cidrs, &other.reserved, &other.api_servers, &other.exposure)
            || self.routers().collect::<BTreeSet<_>>() != other.routers().collect()
    }

    /// Whether other nodes know this one by an address.
    pub(crate) fn is_known_by(&self, address: IpAddr) -> bool {
        [self.config.node_v4, self.config.node_v6].contains(&address.into())
    }

    /// Whether NodePorts are served at an address of the host.
    pub(crate) fn serves_node_ports(&self, address: IpAddr) -> bool {
        let serves = |at: &NodePortAddress| match at {
            NodePortAddress::Primary => self.is_known_by(address),
            NodePortAddress::In(net) => net.contains(&address),
        };
        !address.is_loopback() && self.exposure.node_port_addresses.iter().any(serves)
    }
}

/// How another node is reached.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NextHop {
    /// By a router.
    Router(IpAddr),
    /// On the uplink itself, by this Ethernet address, where it is known.
    Neighbour(Option<Mac>),
}

/// One workload plugged into this node; the store's record, on disk as JSON.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Attachment {
    /// What was asked.
    pub spec: AttachmentSpec,
    /// What was given.
    pub allocation: Allocation,
    /// The link, once attached.
    pub link: Option<PortLink>,
}

/// The numbers that a plan gave out, kept from one plan to the next so that an object keeps its number while it lives. Who starts
/// anew has them from the maps ([`Numbers::recovered`]), as far as they are not hashes.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Numbers {
    /// Where hashes come from.
    pub key: HashKey,
    /// Numbers of Service ports, by the frontends that they are numbered by: those of their ClusterIPs.
    pub services: BTreeMap<FrontendKey, u32>,
    /// Next number of a Service port to try, as `next_slot`.
    pub next_service: u32,
    /// Generation slots of workloads: key is the attachment's id as text.
    pub workloads: BTreeMap<String, u32>,
    /// Next generation slot to try: freed ones are not given out again before all others were.
    pub next_slot: u32,
    /// Names of the decision lists that had room at the last plan.
    pub lists: BTreeSet<u64>,
    /// Service frontends that did not fit at the last plan, or had no backend in the maps.
    pub refused: BTreeSet<FrontendKey>,
    /// Numbers of decision lists that ports had before a restart, until the first plan after it.
    pub standing_lists: BTreeSet<u64>,
    /// Terms that classes had before a restart, as long.
    pub standing_terms: BTreeMap<u64, Box<[u64]>>,
}

/// How much of a plan the maps hold. What is new stands beside what goes for the time of a pass, where it cannot take its place.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Service frontends (`FRONTENDS`, half of it: the other half is for their addresses), and as many Service ports (`BALANCERS`,
    /// `SERVICE_GENERATIONS`).
    pub services: usize,
    /// Backends, rings and `loadBalancerSourceRanges` of all Service ports (`MEMBERS`, `RINGS`, `BACKENDS`, `SOURCES`); a node of a ring
    /// takes [`weft_abi::RingNode::MEMBERS`].
    pub members: usize,
    /// Addresses of pods (`PEERS`).
    pub peers: usize,
    /// Classes of them: half of `CLASSES`.
    pub classes: usize,
    /// Terms of one class.
    pub terms: usize,
    /// Rules of decision lists: half of `RULES`.
    pub rules: usize,
    /// Their blocks of addresses: half of `BLOCKS`.
    pub blocks: usize,
    /// Selectors that are looked at, to find what all classes match.
    pub work: u64,
}

impl Room {
    /// A second or two of work.
    pub const WORK: u64 = 1 << 27;

    /// What Services share: frontends, and what they lead to.
    pub(crate) const fn of_services(&self) -> [usize; 2] {
        [self.services, self.members]
    }
}

/// What kind of object does not fit.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum RefusedKind {
    /// A NetworkPolicy: the workloads that it selects are closed.
    Policy,
    /// A workload's pod: closed, one way or both.
    Pod,
    /// A namespace: no policy of this node knows its pods.
    Namespace,
    /// A Service: new flows are refused.
    Service,
    /// A Service: load balancers cannot ask for it at this node.
    HealthCheck,
    /// The node itself: workloads do not leave it.
    Node,
    /// A Service that is served otherwise than it is written, wherever. The last kind: whoever writes these waits for what does not fit.
    WrittenService,
}

/// An object that does not fit into the maps: closed for its owner alone.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Refusal {
    /// What it is.
    pub kind: RefusedKind,
    /// Which.
    pub key: ObjectKey,
    /// Its uid, where it is known.
    pub uid: Option<String>,
    /// Why, and the fix.
    pub why: String,
}

/// The dataplane as it should be: exactly what the maps should hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Desired {
    /// `CONFIG`.
    pub config: Config,
    /// `DEVICES`.
    pub devices: BTreeMap<u32, Device>,
    /// `PORTS`, by ifindex.
    pub ports: BTreeMap<u32, Port>,
    /// `ADDRESSES`.
    pub addresses: BTreeMap<AddressKey, Owner>,
    /// `REMOTES`.
    pub remotes: BTreeMap<CidrKey, Remote>,
    /// `FRONTENDS`. Those of one Service port and family have one number.
    pub frontends: BTreeMap<FrontendKey, Frontend>,
    /// `BALANCERS`, `MEMBERS`, `RINGS` and `BACKENDS`, by the number of the Service port; the apply step numbers the sets.
    pub balancers: BTreeMap<u32, DesiredBalancer>,
    /// `SOURCES`: those of `balancers`.
    pub sources: BTreeMap<CidrKey, u32>,
    /// `PEERS`.
    pub peers: BTreeMap<AddressKey, u64>,
    /// `CLASSES`.
    pub classes: BTreeMap<u64, Class>,
    /// `LISTS`.
    pub lists: BTreeMap<u64, List>,
    /// `RULES`.
    pub rules: BTreeMap<RuleKey, Run>,
    /// `BLOCKS`.
    pub blocks: BTreeMap<BlockKey, u64>,
    /// By generation slot of a workload: a digest of everything that judges its flows (its decision lists, whom they
    /// know by address, its place). When it changes, apply bumps the slot's generation; when it does not, no flow of the
    /// workload decides again.
    pub workload_digests: BTreeMap<u32, u64>,
    /// Digest of `remotes`; when it changes the routes' generation moves.
    pub routes_digest: u64,
    /// Pod CIDRs of other nodes, the Service CIDRs and the addresses of Services beside them, in order: what the host must route
    /// into `weft0` or, in native mode, to the next hop.
    pub host_routes: Arc<Vec<HostRoute>>,
    /// Where other nodes' pods are, for `weft status`.
    pub route_reports: Vec<RouteReport>,
    /// For `weft services`.
    pub service_reports: Vec<ServiceReport>,
    /// For `weft policies`.
    pub policy_reports: Vec<PolicyReport>,
    /// Policies that isolate each attachment (id as text): (ingress, egress), for `weft endpoints`.
    pub isolation: BTreeMap<String, (Vec<String>, Vec<String>)>,
    /// Names of addresses known here: `namespace/name` of pods, for flow events.
    pub names: BTreeMap<Addr, String>,
    /// Names of frontends: `namespace/name`, for flow events.
    pub service_names: BTreeMap<FrontendKey, String>,
    /// Objects that could not be planned, and why.
    pub problems: Vec<String>,
    /// Objects that do not fit.
    pub refusals: BTreeSet<Refusal>,
    /// Workloads (attachments' ids as text) that are closed because their policies do not fit, and why.
    pub closed: BTreeMap<String, String>,
}

impl Desired {
    /// See [`heap::pack`].
    pub(crate) fn pack(&mut self) {
        let Self { remotes, frontends, balancers, sources, peers, classes, rules, blocks, .. } = self;
        heap::pack(remotes);
        heap::pack(frontends);
        heap::pack(balancers);
        heap::pack(sources);
        heap::pack(peers);
        heap::pack(classes);
        heap::pack(rules);
        heap::pack(blocks);
    }
}

/// The members that clients of a Service port are sent to; each set in a stable order, no member twice.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DesiredBalancer {
    /// For clients of ClusterIPs.
    pub internal: Arc<[Member]>,
    /// For clients of every other frontend.
    pub external: Arc<[Member]>,
    /// All of the cluster.
    pub cluster: Arc<[Member]>,
    /// Those that keep the flows they have, and get no new ones: endpoints that terminate and serve on.
    pub keeping: Arc<[Member]>,
    /// Whether clients keep their backend.
    pub affinity: DesiredAffinity,
    /// How one of a set is chosen.
    pub choice: DesiredChoice,
    /// [`weft_abi::Balancer::first`].
    pub first: SocketEnd,
    /// Prefixes of clients that its limited frontends serve; in order, none twice.
    pub sources: Arc<[IpNet]>,
}

/// How new flows of a Service port get their backends.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct DesiredChoice {
    /// See [`Algorithm`].
    pub algorithm: Algorithm,
    /// [`weft_abi::Balancer::seed`]; 0 where the choice is not consistent.
    pub seed: u64,
}

/// The value of all entries of `SOURCES`.
const SERVED: u32 = 1;

/// For how long clients of a Service port keep their backend.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct DesiredAffinity {
    /// [`weft_abi::Balancer::affinity`]; 0: they do not.
    pub ticks: u32,
    /// [`weft_abi::Balancer::name`]; 0 where they do not.
    pub name: u64,
}

impl DesiredBalancer {
    /// One with the same set for everybody.
    pub(crate) fn of(chosen: impl Into<Arc<[Member]>>, keeping: impl Into<Arc<[Member]>>) -> Self {
        let chosen = chosen.into();
        let [internal, external] = [&chosen, &chosen].map(Arc::clone);
        Self {
            internal,
            external,
            cluster: chosen,
            keeping: keeping.into(),
            affinity: DesiredAffinity::default(),
            choice: DesiredChoice::default(),
            first: SocketEnd::default(),
            sources: Arc::default(),
        }
    }

    /// Its sets, as [`weft_abi::Balancer::sets`] has them.
    pub(crate) const fn sets(&self) -> [&Arc<[Member]>; 3] {
        [&self.internal, &self.external, &self.cluster]
    }

    /// What it takes of [`Room::members`]: its sets with their rings, each set once, those that keep flows, and its sources.
    pub(crate) fn room(&self) -> usize {
        let sets = self.sets();
        let is_first = |place: &usize| !sets[..*place].contains(&sets[*place]);
        let room = |place: usize| sets[place].len() + self.choice.room(sets[place]);
        (0..sets.len()).filter(is_first).map(room).sum::<usize>() + self.keeping.len() + self.sources.len()
    }

    /// The entries that its sources have under this number.
    pub(crate) fn source_entries(&self, service: u32) -> impl Iterator<Item = (CidrKey, u32)> {
        self.sources.iter().map(move |source| (CidrKey { net: service, ..cidr_key(*source) }, SERVED))
    }

    /// The names that all backends have under this number, those that get no new flows included, and the [`BackendFlags`] of each.
    pub(crate) fn names(&self, service: u32) -> BTreeMap<BackendKey, u32> {
        let mut names = BTreeMap::new();
        for (set, flag) in self.sets().into_iter().zip(BackendFlags::OF_SETS).chain([(&self.keeping, 0)]) {
            for Member { addr, port, .. } in set.iter() {
                *names.entry(BackendKey::new(service, *addr, *port)).or_insert(BackendFlags::SERVING) |= flag;
            }
        }
        names
    }
}

/// A route of the host's main table that Weft owns (route protocol 119).
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct HostRoute {
    /// Destination.
    pub dst: IpNet,
    /// Next hop through the uplink; none: on-link through `weft0`.
    pub via: Option<IpAddr>,
}

#[cfg(test)]
mod sample;
