// SPDX-License-Identifier: Apache-2.0
//! Which endpoints serve a Service port: EndpointSlices merged, then chosen by readiness.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    net::IpAddr,
    sync::Arc,
};

use crate::{
    model::{
        Labels, ObjectKey,
        objects::{Endpoint as SliceEndpoint, EndpointPort, EndpointSlice},
    },
    plan::address::parse_ip,
};

/// Labels of Services and slices that are another proxy's business, whatever their value.
const FOREIGN_LABELS: [&str; 2] = ["service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"];

/// Label of a slice that names its Service.
pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Whether the labels give the object to another proxy.
pub(crate) fn is_foreign(labels: Option<&Labels>) -> bool {
    labels.is_some_and(|labels| FOREIGN_LABELS.iter().any(|label| labels.contains_key(label)))
}

/// Whether an endpoint takes new connections by right or for want of a better one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Readiness {
    Ready,
    /// `serving` and `terminating`: used only where nothing is ready (KEP-1669).
    Terminating,
}

impl Readiness {
    /// The name shown to people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Terminating => "terminating",
        }
    }
}

/// One endpoint of one Service port.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Endpoint<'a> {
    pub(crate) addr: IpAddr,
    pub(crate) port: u16,
    pub(crate) node: Option<&'a str>,
    pub(crate) readiness: Readiness,
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

/// Which port of a Service, and for whom.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    /// Port name, empty for an unnamed port.
    pub(crate) port: &'a str,
    /// `TCP`, `UDP` or `SCTP`.
    pub(crate) protocol: &'a str,
    /// Of this family only.
    pub(crate) ipv4: bool,
    /// Of this node only (`internalTrafficPolicy: Local`).
    pub(crate) node: Option<&'a str>,
}

/// The endpoints that new connections go to, sorted by address and port, none twice.
pub(crate) fn choose<'a>(slices: &[&'a EndpointSlice], wanted: Wanted<'_>) -> Vec<Endpoint<'a>> {
    let mut usable = BTreeMap::new();
    let address_type = if wanted.ipv4 { "IPv4" } else { "IPv6" };
    for slice in slices.iter().filter(|slice| &*slice.address_type == address_type) {
        for port in slice.ports.iter().flatten().filter_map(|port| number_of(port, wanted)) {
            for endpoint in slice.endpoints.iter().flatten() {
                if let Some(endpoint) = usable_endpoint(endpoint, port, wanted) {
                    merge(&mut usable, endpoint);
                }
            }
        }
    }
    let any_ready = usable.values().any(|endpoint| endpoint.readiness == Readiness::Ready);
    usable.into_values().filter(|endpoint| !any_ready || endpoint.readiness == Readiness::Ready).collect()
}

fn number_of(port: &EndpointPort, wanted: Wanted<'_>) -> Option<u16> {
    let matches = port.name.as_deref().unwrap_or_default() == wanted.port
        && port.protocol.as_deref().unwrap_or("TCP") == wanted.protocol;
    port.port.and_then(|number| u16::try_from(number).ok()).filter(|number| matches && *number != 0)
}

fn usable_endpoint<'a>(endpoint: &'a SliceEndpoint, port: u16, wanted: Wanted<'_>) -> Option<Endpoint<'a>> {
    // The API promises that all addresses of an endpoint are interchangeable; like kube-proxy, only the first is used.
    let addr =
        endpoint.addresses.first().and_then(|text| parse_ip(text)).filter(|addr| addr.is_ipv4() == wanted.ipv4)?;
    let node = endpoint.node_name.as_deref();
    if wanted.node.is_some() && wanted.node != node {
        return None;
    }
    Some(Endpoint { addr, port, node, readiness: readiness_of(endpoint)? })
}

/// Absent conditions: `ready` is true, `serving` is as `ready`, `terminating` is false (discovery/v1 types).
fn readiness_of(endpoint: &SliceEndpoint) -> Option<Readiness> {
    let conditions = endpoint.conditions.as_ref();
    let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
    let serving = conditions.and_then(|c| c.serving).unwrap_or(ready);
    let terminating = conditions.and_then(|c| c.terminating).unwrap_or(false);
    match (ready, serving && terminating) {
        (true, _) => Some(Readiness::Ready),
        (false, true) => Some(Readiness::Terminating),
        (false, false) => None,
    }
}

/// An endpoint may stand in two slices while it moves between them: ready wins, and whoever tells the node.
fn merge<'a>(usable: &mut BTreeMap<(IpAddr, u16), Endpoint<'a>>, new: Endpoint<'a>) {
    match usable.entry((new.addr, new.port)) {
        Entry::Vacant(vacant) => {
            vacant.insert(new);
        }
        Entry::Occupied(mut known) => {
            let known = known.get_mut();
            known.node = known.node.or(new.node);
            if new.readiness == Readiness::Ready {
                known.readiness = Readiness::Ready;
            }
        }
    }
}
