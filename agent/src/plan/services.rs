// SPDX-License-Identifier: Apache-2.0
//! Services to frontends.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use weft_abi::{Addr, CLUSTER_NET, Frontend as Entry, FrontendFlags, FrontendKey, Member};
use weft_api::{BackendReport, ServicePortReport, ServiceReport};

use crate::{
    model::{
        Desired, DesiredAffinity, DesiredBalancer, NodeFacts, Numbers, ObjectKey, Refusal, RefusedKind, Room, Snapshot,
        objects::{EndpointSlice, Service, ServicePort, ServiceSpec, Uid},
    },
    plan::{
        address::parse_ip,
        affinity,
        backends::{self, Endpoint, SliceIndex, Wanted, is_foreign},
        protocol,
        share::{self, Wish},
    },
};

/// One address, port and protocol that clients may name.
#[derive(Debug)]
pub(crate) struct Frontend<'a> {
    key: FrontendKey,
    service: &'a ObjectKey,
    /// Name of the Service's port.
    port: &'a str,
    protocol: &'a str,
    endpoints: Vec<Endpoint<'a>>,
    affinity: DesiredAffinity,
}

impl Frontend<'_> {
    /// How many endpoints new connections go to.
    fn chosen(&self) -> usize {
        self.endpoints.iter().filter(|endpoint| endpoint.chosen).count()
    }
}

impl fmt::Display for Frontend<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}/{} {}", self.service, self.port, self.protocol, IpAddr::from(self.key.addr))
    }
}

/// All frontends, in the order of their Services.
#[derive(Debug, Default)]
pub(crate) struct Frontends<'a> {
    all: Vec<Frontend<'a>>,
    /// What any Service wants, whether it gets it or not.
    wanted: Vec<FrontendKey>,
    keys: BTreeMap<FrontendKey, &'a ObjectKey>,
    /// None: they are not asked for.
    reports: Option<Vec<ServiceReport>>,
    problems: Vec<String>,
    /// Frontends without room, and why.
    refused: BTreeMap<FrontendKey, String>,
    /// Those of them that get no entry at all.
    left_out: BTreeSet<FrontendKey>,
}

/// Finds every frontend and its endpoints.
pub(crate) fn frontends<'a>(snapshot: &'a Snapshot, facts: &NodeFacts) -> Frontends<'a> {
    let slices = SliceIndex::new(&snapshot.slices);
    let mut frontends = Frontends { reports: Some(Vec::new()), ..Frontends::default() };
    for (key, service) in &snapshot.services {
        if let Some(spec) = programmed_spec(service) {
            frontends.add_service(key, spec, slices.of(key), &facts.name);
        }
    }
    frontends
}

/// The spec of a Service that has frontends (`ShouldSkipService` of kube-proxy).
fn programmed_spec(service: &Service) -> Option<&ServiceSpec> {
    let spec = service.spec.as_ref()?;
    let skipped = is_foreign(service.metadata.labels.as_deref())
        || spec.type_.as_deref() == Some("ExternalName")
        || matches!(spec.cluster_ip.as_deref(), None | Some("" | "None"));
    (!skipped).then_some(spec)
}

fn cluster_ips(spec: &ServiceSpec) -> Vec<&str> {
    match spec.cluster_ips.as_deref() {
        Some(all) if !all.is_empty() => all.iter().map(String::as_str).collect(),
        _ => spec.cluster_ip.iter().map(String::as_str).collect(),
    }
}

/// What one Service comes to.
#[derive(Debug, Default)]
pub(crate) struct Planned {
    /// What it wants, whether it gets it or not.
    pub(crate) wanted: Vec<FrontendKey>,
    /// The ClusterIP frontends that it gets, each with the balancer of its Service port and family.
    pub(crate) frontends: Vec<(FrontendKey, DesiredBalancer)>,
    /// What is wrong with it.
    pub(crate) problems: Vec<String>,
}

/// Traffic policies beside internalTrafficPolicy are not known yet, and nobody addresses another frontend: all sets are one.
fn balancer_of(endpoints: &[Endpoint<'_>], affinity: DesiredAffinity) -> DesiredBalancer {
    let of = |chosen: bool| {
        let members = endpoints.iter().filter(|endpoint| endpoint.chosen == chosen).map(member_of);
        members.collect::<Vec<Member>>()
    };
    DesiredBalancer { affinity, ..DesiredBalancer::of(of(true), of(false)) }
}

/// The entry of a ClusterIP frontend.
pub(crate) const fn frontend(service: u32) -> Entry {
    Entry { service, flags: 0 }
}

/// The entry of an address, which it has as long as it is the ClusterIP of some frontend of `frontends`.
pub(crate) fn address_entry(frontends: &BTreeMap<FrontendKey, Entry>, addr: Addr) -> Option<Entry> {
    let mut of_address = frontends.range(ports_of(addr)).map(|(_, frontend)| frontend.flags);
    let is_cluster_ip = of_address.any(|flags| flags & FrontendFlags::EXTERNAL == 0);
    is_cluster_ip.then_some(Entry { service: 0, flags: FrontendFlags::ADDRESS })
}

/// The keys of all frontends that an address can have.
pub(crate) fn ports_of(addr: Addr) -> std::ops::RangeInclusive<FrontendKey> {
    let key = |port, protocol, pad| FrontendKey { pad, ..FrontendKey::of_cluster(addr, port, protocol) };
    key(1, 0, 0)..=key(u16::MAX, u8::MAX, u8::MAX)
}

/// Plans one Service by itself. `taken` tells which Service before it has a frontend.
pub(crate) fn plan_one<'a>(
    key: &'a ObjectKey,
    service: &'a Service,
    slices: &[&'a EndpointSlice],
    node: &str,
    taken: impl Fn(&FrontendKey) -> Option<&'a ObjectKey>,
) -> Planned {
    let Some(spec) = programmed_spec(service) else { return Planned::default() };
    let ports = spec.ports.iter().flatten().filter_map(|port| NamedPort::of(port).ok());
    let ports: Vec<(u16, u8)> = ports.map(|port| (port.port, port.number)).collect();
    let mut frontends = Frontends::default();
    for vip in cluster_ips(spec).into_iter().filter_map(parse_ip) {
        for key in ports.iter().map(|(port, number)| frontend_key(vip, *port, *number)) {
            frontends.keys.extend(taken(&key).map(|holder| (key, holder)));
        }
    }
    frontends.add_service(key, spec, slices, node);
    let planned = |frontend: Frontend<'_>| (frontend.key, balancer_of(&frontend.endpoints, frontend.affinity));
    Planned {
        wanted: frontends.wanted,
        frontends: frontends.all.into_iter().map(planned).collect(),
        problems: frontends.problems,
    }
}

/// What is told of one Service; none: it has no frontends.
pub(crate) fn report_one(
    key: &ObjectKey,
    service: &Service,
    slices: &[&EndpointSlice],
    node: &str,
) -> Option<ServiceReport> {
    let mut frontends = Frontends { reports: Some(Vec::new()), ..Frontends::default() };
    frontends.add_service(key, programmed_spec(service)?, slices, node);
    frontends.reports?.pop()
}

fn frontend_key(vip: IpAddr, port: u16, protocol: u8) -> FrontendKey {
    FrontendKey::of_cluster(Addr::from(vip), port.to_be(), protocol)
}

impl<'a> Frontends<'a> {
    fn add_service(&mut self, key: &'a ObjectKey, spec: &'a ServiceSpec, slices: &[&'a EndpointSlice], node: &str) {
        let mut vips = Vec::new();
        for text in cluster_ips(spec) {
            match parse_ip(text) {
                Some(vip) => vips.push(vip),
                None => self.problems.push(format!("Service {key}: spec.clusterIPs: '{text}' is not an IP address")),
            }
        }
        let (seconds, why) = affinity::seconds_of(spec);
        self.problems.extend(why.map(|why| format!("Service {key}: {why}")));
        let local = spec.internal_traffic_policy.as_deref() == Some("Local");
        let (mut reports, mut names) = (Vec::new(), BTreeSet::new());
        for port in spec.ports.iter().flatten() {
            match NamedPort::of(port) {
                Ok(named) => {
                    let wanted = |vip: IpAddr| Wanted {
                        port: named.name,
                        protocol: named.protocol,
                        ipv4: vip.is_ipv4(),
                        node: local.then_some(node),
                    };
                    let chosen: Vec<_> =
                        vips.iter().map(|vip| (*vip, backends::choose(slices, wanted(*vip)))).collect();
                    if self.reports.is_some() {
                        let endpoints = chosen.iter().flat_map(|(_, endpoints)| endpoints);
                        reports.push(named.report(endpoints.filter(|endpoint| endpoint.chosen)));
                    }
                    if !names.insert((named.name, named.protocol)) {
                        let why = format!("spec.ports has two ports named '{}'", named.name);
                        self.problems.push(format!("Service {key}: {why}"));
                        continue;
                    }
                    for (vip, endpoints) in chosen {
                        let affinity = affinity::of_port(seconds, key, (named.name, named.protocol), vip.is_ipv4());
                        self.add_frontend(key, &named, vip, (endpoints, affinity));
                    }
                }
                Err(why) => self.problems.push(format!("Service {key}: spec.ports '{}': {why}", name_of(port))),
            }
        }
        if let Some(all) = &mut self.reports {
            let (namespace, name) = (key.namespace.to_string(), key.name.to_string());
            all.push(ServiceReport { namespace, name, cluster_ips: vips, ports: reports, affinity_seconds: seconds });
        }
    }

    fn add_frontend(
        &mut self,
        service: &'a ObjectKey,
        port: &NamedPort<'a>,
        vip: IpAddr,
        (endpoints, affinity): (Vec<Endpoint<'a>>, DesiredAffinity),
    ) {
        let key = frontend_key(vip, port.port, port.number);
        self.wanted.push(key);
        if let Some(first) = self.keys.get(&key) {
            self.problems.push(format!(
                "Service {service}: {vip} port {}/{} is taken by Service {first}; give one of them another clusterIP or port",
                port.port, port.protocol
            ));
        } else {
            self.keys.insert(key, service);
            let NamedPort { name: port, protocol, .. } = *port;
            self.all.push(Frontend { key, service, port, protocol, endpoints, affinity });
        }
    }

    /// Refuses frontends for which there is no room: without an entry, or with one that has no backend.
    pub(crate) fn fit(&mut self, room: &Room, numbers: &mut Numbers) {
        let most = room.services;
        for key in self.without_room(most, numbers, |_| 1) {
            let why =
                format!("more than {most} Service addresses times ports: remove Services or raise mapSizes.services");
            self.left_out.insert(key);
            self.refused.insert(key, why);
        }
        for key in self.without_room(room.members, numbers, |frontend| frontend.endpoints.len() as u64) {
            let most = room.members;
            let why =
                format!("more than {most} backends of all Services: use fewer endpoints or raise mapSizes.members");
            self.refused.insert(key, why);
        }
        numbers.refused = self.refused.keys().copied().collect();
    }

    fn without_room(&self, most: usize, numbers: &Numbers, cost: impl Fn(&Frontend<'_>) -> u64) -> Vec<FrontendKey> {
        let asking = || self.all.iter().filter(|frontend| !self.left_out.contains(&frontend.key));
        let wish = |frontend: &Frontend<'a>| Wish {
            namespace: &frontend.service.namespace,
            cost: cost(frontend),
            stood: numbers.services.contains_key(&frontend.key)
                && (frontend.chosen() == 0 || !numbers.refused.contains(&frontend.key)),
        };
        let granted = share::grant(most as u64, &asking().map(wish).collect::<Vec<_>>());
        let refused = asking().zip(granted).filter(|(_, granted)| !granted);
        refused.map(|(frontend, _)| frontend.key).collect()
    }

    /// Those that need a number each.
    pub(crate) fn number_keys(&self) -> BTreeSet<FrontendKey> {
        self.all.iter().map(|frontend| frontend.key).filter(|key| !self.left_out.contains(key)).collect()
    }

    /// Writes the frontends down, with the numbers they were given.
    pub(crate) fn describe(self, snapshot: &Snapshot, numbers: &Numbers, desired: &mut Desired) {
        desired.problems.extend(self.problems);
        desired.service_reports = self.reports.unwrap_or_default();
        for frontend in self.all {
            let refused = self.refused.get(&frontend.key);
            if let Some(why) = refused {
                let why = format!("does not fit: new flows to {frontend} are refused: {why}");
                desired.problems.push(format!("Service {}: {why}", frontend.service));
                let uid = snapshot
                    .services
                    .get(frontend.service)
                    .and_then(|service| service.metadata.uid.as_ref().map(Uid::to_string));
                let key = frontend.service.clone();
                desired.refusals.insert(Refusal { kind: RefusedKind::Service, key, uid, why });
            }
            if self.left_out.contains(&frontend.key) {
                continue;
            }
            // As many have numbers as fit.
            let Some(&service) = numbers.services.get(&frontend.key) else { continue };
            let endpoints = if refused.is_some() { &[][..] } else { &frontend.endpoints };
            desired.balancers.insert(service, balancer_of(endpoints, frontend.affinity));
            desired.frontends.insert(frontend.key, self::frontend(service));
            desired.service_names.insert(frontend.key, frontend.service.to_string());
        }
        let addresses: BTreeSet<Addr> = desired.frontends.keys().map(|key| key.addr).collect();
        for addr in addresses {
            let entry = address_entry(&desired.frontends, addr);
            desired.frontends.extend(entry.map(|entry| (FrontendKey::of_address(CLUSTER_NET, addr), entry)));
        }
    }
}

fn member_of(endpoint: &Endpoint<'_>) -> Member {
    Member { addr: Addr::from(endpoint.addr), port: endpoint.port.to_be(), flags: 0 }
}

/// A Service port with its defaults filled in.
struct NamedPort<'a> {
    name: &'a str,
    protocol: &'a str,
    number: u8,
    port: u16,
}

fn name_of(port: &ServicePort) -> &str {
    port.name.as_deref().unwrap_or_default()
}

impl<'a> NamedPort<'a> {
    fn of(port: &'a ServicePort) -> Result<Self, String> {
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let number =
            protocol::number(protocol).ok_or_else(|| format!("protocol: '{protocol}' is not TCP, UDP or SCTP"))?;
        let port_number = u16::try_from(port.port)
            .ok()
            .filter(|number| *number != 0)
            .ok_or_else(|| format!("port: {} is not between 1 and 65535", port.port))?;
        Ok(Self { name: name_of(port), protocol, number, port: port_number })
    }

    fn report<'e>(&self, endpoints: impl Iterator<Item = &'e Endpoint<'e>>) -> ServicePortReport {
        ServicePortReport {
            name: self.name.to_owned(),
            protocol: self.protocol.to_owned(),
            port: self.port,
            backends: endpoints
                .map(|endpoint| BackendReport {
                    address: endpoint.addr,
                    port: endpoint.port,
                    node: endpoint.node.map(str::to_owned),
                    state: backends::name_of(endpoint.readiness).to_owned(),
                })
                .collect(),
        }
    }
}
