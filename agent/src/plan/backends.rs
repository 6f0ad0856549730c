// SPDX-License-Identifier: Apache-2.0
//! Which endpoints serve a Service port: EndpointSlices merged, then chosen by readiness.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;

use weft_abi::DEFAULT_WEIGHT;

use super::{
    address::parse_cidr,
    choice::{Weight, Weights},
};
use crate::model::{
    Labels, Name, NodeFacts, ObjectKey, Snapshot,
    objects::{Endpoint as SliceEndpoint, EndpointPort, EndpointSlice, Hints, Node, Readiness, ServiceCidr},
};

/// Labels of Services and slices that are another proxy's business, whatever their value.
const FOREIGN_LABELS: [&str; 2] = ["service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"];

/// Label of a Node that names its zone.
const ZONE: &str = "topology.kubernetes.io/zone";

/// Where clients are: this node, and its zone where it is known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Here<'a> {
    pub(crate) facts: &'a NodeFacts,
    pub(crate) zone: Option<&'a str>,
    service_cidrs: &'a BTreeMap<ObjectKey, Arc<ServiceCidr>>,
    weights: &'a Weights,
}

impl<'a> Here<'a> {
    /// This node, in the zone that its Node object tells.
    pub(crate) fn of(snapshot: &'a Snapshot, facts: &'a NodeFacts, weights: &'a Weights) -> Self {
        let node = snapshot.nodes.get(&ObjectKey::new("", &facts.name));
        Self { facts, zone: node.and_then(|node| zone_of(node)), service_cidrs: &snapshot.service_cidrs, weights }
    }

    /// The prefix of ClusterIPs that an address is in.
    pub(crate) fn service_cidr_of(&self, address: IpAddr) -> Option<IpNet> {
        let objects = self
            .service_cidrs
            .values()
            .flat_map(|object| object.cidrs().iter().filter_map(|cidr| parse_cidr(cidr).ok()));
        let all = self.facts.service_cidrs.iter().copied().chain(objects);
        all.filter(|cidr| cidr.contains(&address)).max_by_key(IpNet::prefix_len)
    }
}

/// The zone that a Node is labelled with.
pub(crate) fn zone_of(node: &Node) -> Option<&str> {
    node.metadata.labels.as_deref()?.get(ZONE)
}

/// Label of a slice that names its Service.
pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Whether the labels give the object to another proxy.
pub(crate) fn is_foreign(labels: Option<&Labels>) -> bool {
    labels.is_some_and(|labels| FOREIGN_LABELS.iter().any(|label| labels.contains_key(label)))
}

/// One endpoint of one Service port.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Endpoint<'a> {
    pub(crate) addr: IpAddr,
    pub(crate) port: u16,
    pub(crate) node: Option<&'a str>,
    pub(crate) readiness: Readiness,
    pub(crate) weight: Weight,
    hints: Option<&'a Hints>,
}

impl Endpoint<'_> {
    /// What it is, for people.
    pub(crate) const fn state(&self) -> &'static str {
        match self.readiness {
            Readiness::Ready if self.weight.is_migrating => "migrating",
            Readiness::Ready => "ready",
            Readiness::Terminating => "terminating",
            Readiness::Serving => "serving",
        }
    }

    /// Its part of new connections among others that are chosen with it.
    pub(crate) const fn parts(&self) -> u16 {
        // One that has none is chosen where nobody has any.
        if self.weight.parts == 0 { DEFAULT_WEIGHT } else { self.weight.parts }
    }
}

/// Slices by the namespace and the name of the Service that they belong to.
#[derive(Debug, Default)]
pub(crate) struct SliceIndex<'a>(BTreeMap<&'a str, BTreeMap<&'a str, Vec<&'a EndpointSlice>>>);

impl<'a> SliceIndex<'a> {
    /// Sorts all slices by their Service; those of another proxy are left out.
    pub(crate) fn new(slices: &'a BTreeMap<ObjectKey, Arc<EndpointSlice>>) -> Self {
        let mut index = Self::default();
        for (key, slice) in slices {
            if let Some(service) = service_of(slice) {
                index.0.entry(&key.namespace).or_default().entry(service).or_default().push(slice);
            }
        }
        index
    }

    /// The slices of one Service.
    pub(crate) fn of(&self, service: &ObjectKey) -> &[&'a EndpointSlice] {
        self.0.get(&*service.namespace).and_then(|services| services.get(&*service.name)).map_or(&[], Vec::as_slice)
    }
}

/// The name of the Service that a slice belongs to, unless it is another proxy's.
pub(crate) fn service_of(slice: &EndpointSlice) -> Option<&str> {
    let labels = slice.metadata.labels.as_deref().filter(|labels| !is_foreign(Some(labels)))?;
    labels.get(SERVICE_NAME)
}

/// Which port of a Service.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    /// Port name, empty for an unnamed port.
    pub(crate) port: &'a str,
    /// `TCP`, `UDP` or `SCTP`.
    pub(crate) protocol: &'a str,
    /// Of this family only.
    pub(crate) ipv4: bool,
}

/// The endpoints of a Service port that serve.
#[derive(Debug)]
pub(crate) struct Serving<'a>(Vec<Endpoint<'a>>);

impl<'a> Serving<'a> {
    /// Those that new connections go to, of this node alone (a traffic policy `Local`) or of all that are meant for it. Whoever is left
    /// keeps the connections that it has.
    pub(crate) fn chosen(&self, local: bool, here: Here<'_>) -> Vec<&Endpoint<'a>> {
        let is_here = |endpoint: &&Endpoint<'_>| endpoint.node == Some(here.facts.name.as_str());
        let best = if local { best(self.0.iter().filter(is_here)) } else { best(self.0.iter()) };
        if local || best.iter().any(|endpoint| endpoint.readiness != Readiness::Ready) {
            return weighty(best);
        }
        // Before hints: who is drained is nobody's only one.
        meant_for(weighty(best), here)
    }

    /// All of them.
    pub(crate) fn all(&self) -> &[Endpoint<'a>] {
        &self.0
    }
}

/// The ones that are ready, and where none is, those that terminate (KEP-1669).
fn best<'e, 'a: 'e>(endpoints: impl Iterator<Item = &'e Endpoint<'a>> + Clone) -> Vec<&'e Endpoint<'a>> {
    let any_ready = endpoints.clone().any(|endpoint| endpoint.readiness == Readiness::Ready);
    let best = if any_ready { Readiness::Ready } else { Readiness::Terminating };
    endpoints.filter(|endpoint| endpoint.readiness == best).collect()
}

/// Those that have a part of new connections, and where nobody has, all.
fn weighty<'e, 'a>(mut endpoints: Vec<&'e Endpoint<'a>>) -> Vec<&'e Endpoint<'a>> {
    let has_parts = |endpoint: &&Endpoint<'a>| endpoint.weight.parts != 0;
    if endpoints.iter().any(has_parts) {
        endpoints.retain(has_parts);
    }
    endpoints
}

/// Those that hints give to clients of this node, else to those of its zone; all of them unless each is given to somebody, and one to
/// these clients (`CategorizeEndpoints` of kube-proxy, KEP-2433, KEP-3015).
fn meant_for<'e, 'a>(ready: Vec<&'e Endpoint<'a>>, here: Here<'_>) -> Vec<&'e Endpoint<'a>> {
    let by = |names: fn(&Hints) -> &[Name], client: Option<&str>| {
        let of = |endpoint: &Endpoint<'a>| endpoint.hints.map(names).filter(|names| !names.is_empty());
        let is_meant = |endpoint: &Endpoint<'a>| of(endpoint)?.iter().any(|name| Some(&**name) == client).then_some(());
        let applies = ready.iter().all(|endpoint| of(endpoint).is_some());
        let meant: Vec<_> = ready.iter().copied().filter(|endpoint| is_meant(endpoint).is_some()).collect();
        (applies && !meant.is_empty()).then_some(meant)
    };
    by(|hints| &hints.nodes, Some(&here.facts.name)).or_else(|| by(|hints| &hints.zones, here.zone)).unwrap_or(ready)
}

/// The endpoints that serve, sorted by address and port, none twice.
pub(crate) fn serving<'a>(slices: &[&'a EndpointSlice], wanted: Wanted<'_>, here: Here<'_>) -> Serving<'a> {
    let mut usable = BTreeMap::new();
    let address_type = if wanted.ipv4 { "IPv4" } else { "IPv6" };
    for slice in slices.iter().filter(|slice| &*slice.address_type == address_type) {
        let weight_of = |pod: Option<&Name>| match &slice.metadata.namespace {
            Some(namespace) => here.weights.find(namespace, pod),
            None => Weight::USUAL,
        };
        for port in slice.ports.iter().flatten().filter_map(|port| number_of(port, wanted)) {
            for endpoint in slice.endpoints.iter().flatten() {
                if let Some(endpoint) = usable_endpoint(endpoint, port, wanted, weight_of(endpoint.pod.as_ref())) {
                    merge(&mut usable, endpoint);
                }
            }
        }
    }
    Serving(usable.into_values().collect())
}

fn number_of(port: &EndpointPort, wanted: Wanted<'_>) -> Option<u16> {
    let matches = port.name.as_deref().unwrap_or_default() == wanted.port
        && port.protocol.as_deref().unwrap_or("TCP") == wanted.protocol;
    port.port.and_then(|number| u16::try_from(number).ok()).filter(|number| matches && *number != 0)
}

fn usable_endpoint<'a>(
    endpoint: &'a SliceEndpoint,
    port: u16,
    wanted: Wanted<'_>,
    weight: Weight,
) -> Option<Endpoint<'a>> {
    let addr = endpoint.address.filter(|addr| addr.is_ipv4() == wanted.ipv4)?;
    let (node, hints) = (endpoint.node.as_deref(), endpoint.hints.as_deref());
    Some(Endpoint { addr, port, node, readiness: endpoint.readiness?, weight, hints })
}

/// An endpoint may stand in two slices while it moves between them: what takes more connections wins, whoever tells the node, and the
/// lesser weight. A VM's may be of two Pods while it is migrated.
fn merge<'a>(usable: &mut BTreeMap<(IpAddr, u16), Endpoint<'a>>, new: Endpoint<'a>) {
    match usable.entry((new.addr, new.port)) {
        Entry::Vacant(vacant) => {
            vacant.insert(new);
        }
        Entry::Occupied(mut known) => {
            let known = known.get_mut();
            known.node = known.node.or(new.node);
            known.hints = known.hints.or(new.hints);
            known.readiness = known.readiness.min(new.readiness);
            known.weight.parts = known.weight.parts.min(new.weight.parts);
            known.weight.is_migrating |= new.weight.is_migrating;
        }
    }
}
