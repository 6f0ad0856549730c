// SPDX-License-Identifier: Apache-2.0
//! Services to frontends.

pub(crate) mod claim;
mod external;
mod health_check;
pub(crate) mod host_ports;
mod shape;
mod sources;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use weft_abi::{Addr, CLUSTER_NET, Frontend as Entry, FrontendFlags, FrontendKey, Member, SocketEnd};
use weft_api::ServiceReport;

use self::{
    claim::{Claim, Rank},
    host_ports::HostPorts,
    shape::{NamedPort, Shape},
};
use crate::{
    model::{
        Desired, DesiredAffinity, DesiredBalancer, DesiredChoice, NodeFacts, Numbers, ObjectKey, Refusal, RefusedKind,
        Room, Snapshot, algorithm,
        objects::{EndpointSlice, Service, ServiceSpec, Uid},
    },
    plan::{
        affinity,
        backends::{self, Endpoint, Here, Serving, SliceIndex, is_foreign},
        choice::Weights,
        share::{self, Wish},
    },
};

pub(crate) use self::health_check::health_check;

/// One address, port and protocol that clients may name.
#[derive(Debug)]
pub(crate) struct Frontend<'a> {
    key: FrontendKey,
    /// By what right it is had.
    claim: Claim,
    service: &'a ObjectKey,
    /// Name of the Service's port.
    port: &'a str,
    protocol: &'a str,
    leads: Lead,
}

/// Where a frontend leads.
#[derive(Clone, Debug)]
pub(crate) enum Lead {
    /// A ClusterIP's: its Service port and family are numbered by it.
    First(DesiredBalancer),
    /// Any other one of a Service: where the first one of its Service port and family does.
    Further {
        /// The first one.
        first: FrontendKey,
        /// By what right it is had.
        claim: Claim,
        /// Only clients among the balancer's sources are served.
        is_limited: bool,
        /// See [`FrontendFlags::FOR_HOST`].
        for_host: bool,
    },
    /// A port of the host: to a workload of this node.
    HostPort(DesiredBalancer),
}

impl Lead {
    /// Of all but what leads where another frontend does.
    pub(crate) const fn balancer(&self) -> Option<&DesiredBalancer> {
        match self {
            Self::First(balancer) | Self::HostPort(balancer) => Some(balancer),
            Self::Further { .. } => None,
        }
    }

    /// See [`Lead::balancer`].
    pub(crate) fn into_balancer(self) -> Option<DesiredBalancer> {
        match self {
            Self::First(balancer) | Self::HostPort(balancer) => Some(balancer),
            Self::Further { .. } => None,
        }
    }
}

impl Frontend<'_> {
    /// The balancer, of the first frontend of a Service port.
    const fn balancer(&self) -> Option<&DesiredBalancer> {
        self.leads.balancer()
    }

    /// The frontend that its Service port is numbered by.
    const fn first(&self) -> FrontendKey {
        match &self.leads {
            Lead::First(_) | Lead::HostPort(_) => self.key,
            Lead::Further { first, .. } => *first,
        }
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
    wanted: Vec<(Claim, FrontendKey)>,
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
pub(crate) fn frontends<'a>(
    snapshot: &'a Snapshot,
    facts: &NodeFacts,
    (host_ports, weights): (&'a HostPorts, &Weights),
) -> Frontends<'a> {
    let slices = SliceIndex::new(&snapshot.slices);
    let mut frontends = Frontends { reports: Some(Vec::new()), ..Frontends::default() };
    let here = Here::of(snapshot, facts, weights);
    let programmed = |(key, service): (&'a ObjectKey, &'a Arc<Service>)| {
        let spec = programmed_spec(service)?;
        Some((key, &**service, spec, Shape::of(key, service, spec, here)))
    };
    let services: Vec<_> = snapshot.services.iter().filter_map(programmed).collect();
    let of_services = services.iter().flat_map(|(key, service, _, shape)| {
        shape.asked().map(move |(claim, frontend, first)| (rank_of(claim, key, service), frontend, first))
    });
    let of_workloads = host_ports.iter().flat_map(|(key, attachment)| {
        host_ports::asked(attachment).map(move |frontend| (host_ports::rank_of(key), frontend, None))
    });
    let holders = claim::holders(of_services.chain(of_workloads).collect());
    let taken =
        |own: &ObjectKey, frontend: &FrontendKey| holders.get(frontend).filter(|holder| *holder != own).cloned();
    for (key, _, spec, shape) in services {
        frontends.add_service(key, (shape, spec), slices.of(key), here, &|_, frontend| taken(key, frontend));
    }
    for (key, attachment) in host_ports {
        frontends.add_host_ports(key, attachment, &|_, frontend| taken(key, frontend));
    }
    frontends
}

/// Whether a load balancer gave it an address.
pub(crate) fn is_balanced(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|spec| external::ingress(service, spec).next().is_some())
}

/// That of a Service.
pub(crate) fn rank_of(claim: Claim, key: &ObjectKey, service: &Service) -> Rank {
    Rank { claim, created: service.metadata.creation_timestamp.clone(), object: key.clone() }
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
    pub(crate) wanted: Vec<(Claim, FrontendKey)>,
    /// The frontends that it gets, each first one before those that lead where it does.
    pub(crate) frontends: Vec<(Claim, FrontendKey, Lead)>,
    /// What is wrong with it.
    pub(crate) problems: Vec<String>,
}

/// Which endpoints clients get.
#[derive(Clone, Copy)]
struct Policies<'n> {
    /// Clients of ClusterIPs get those of this node alone (`internalTrafficPolicy: Local`).
    internal: bool,
    /// So do clients from elsewhere of every other frontend (`externalTrafficPolicy`).
    external: bool,
    /// Where clients are.
    here: Here<'n>,
}

impl<'n> Policies<'n> {
    fn of(spec: &ServiceSpec, here: Here<'n>) -> Self {
        let is_local = |policy: Option<&str>| policy == Some("Local");
        let (internal, external) = (&spec.internal_traffic_policy, &spec.external_traffic_policy);
        Self { internal: is_local(internal.as_deref()), external: is_local(external.as_deref()), here }
    }

    /// Whether sockets of the host that ask for an external address are led to the ClusterIP: where its clients get whom those of the
    /// address get, and where the node does not lose its router or its API server to whoever may write a Service.
    fn lead_host(self, claim: Claim, address: IpAddr) -> bool {
        let facts = self.here.facts;
        matches!(claim, Claim::LoadBalancer | Claim::ExternalIp)
            && facts.exposure.external_from_node
            && !self.internal
            && !facts.is_of_network(address)
            && facts.api_servers.as_ref().is_some_and(|known| !known.contains(&address))
    }
}

fn balancer_of(
    serving: &Serving<'_>,
    policies: Policies<'_>,
    first: &FrontendKey,
    (affinity, choice): (DesiredAffinity, DesiredChoice),
    sources: Arc<[IpNet]>,
) -> DesiredBalancer {
    let set = |local| serving.chosen(local, policies.here).into_iter().map(member_of).collect::<Arc<[Member]>>();
    let cluster = set(false);
    let of = |local| if local { set(true) } else { Arc::clone(&cluster) };
    let (internal, external) = (of(policies.internal), of(policies.external));
    let is_chosen = |member: &Member| [&internal, &external, &cluster].iter().any(|set| set.contains(member));
    let keeping = serving.all().iter().map(member_of).filter(|member| !is_chosen(member)).collect();
    let first = SocketEnd::new(first.addr, first.port);
    DesiredBalancer { internal, external, cluster, keeping, affinity, choice, first, sources }
}

/// The entry of a frontend, under the number of its Service port.
pub(crate) const fn entry(service: u32, lead: &Lead) -> Entry {
    let flags = match lead {
        Lead::First(_) => 0,
        Lead::Further { claim, is_limited, for_host, .. } => {
            let limited = if *is_limited { FrontendFlags::LIMITED } else { 0 };
            let external_ip = if matches!(claim, Claim::ExternalIp) { FrontendFlags::EXTERNAL_IP } else { 0 };
            let for_host = if *for_host { FrontendFlags::FOR_HOST } else { 0 };
            FrontendFlags::EXTERNAL | FrontendFlags::FURTHER | limited | external_ip | for_host
        }
        Lead::HostPort(_) => FrontendFlags::EXTERNAL | FrontendFlags::HOST_PORT,
    };
    Entry { service, flags }
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

/// Plans one Service by itself. `taken` tells who has a frontend rather than it.
pub(crate) fn plan_one<'a>(
    key: &'a ObjectKey,
    service: &'a Service,
    slices: &[&'a EndpointSlice],
    here: Here<'_>,
    taken: impl Fn(Claim, &FrontendKey) -> Option<ObjectKey>,
) -> Planned {
    let Some(spec) = programmed_spec(service) else { return Planned::default() };
    let mut frontends = Frontends::default();
    frontends.add_service(key, (Shape::of(key, service, spec, here), spec), slices, here, &taken);
    frontends.into()
}

impl From<Frontends<'_>> for Planned {
    fn from(Frontends { wanted, all, problems, .. }: Frontends<'_>) -> Self {
        let planned = |frontend: Frontend<'_>| (frontend.claim, frontend.key, frontend.leads);
        Self { wanted, frontends: all.into_iter().map(planned).collect(), problems }
    }
}

/// What is told of one Service; none: it has no frontends.
pub(crate) fn report_one(
    key: &ObjectKey,
    service: &Service,
    slices: &[&EndpointSlice],
    here: Here<'_>,
) -> Option<ServiceReport> {
    let mut frontends = Frontends { reports: Some(Vec::new()), ..Frontends::default() };
    let spec = programmed_spec(service)?;
    frontends.add_service(key, (Shape::of(key, service, spec, here), spec), slices, here, &|_, _| None);
    frontends.reports?.pop()
}

/// Who has a frontend rather than the one that is being planned, which has this claim to it.
type Taken<'t> = &'t dyn Fn(Claim, &FrontendKey) -> Option<ObjectKey>;

impl<'a> Frontends<'a> {
    fn add_service(
        &mut self,
        key: &'a ObjectKey,
        (shape, spec): (Shape<'a>, &ServiceSpec),
        slices: &[&EndpointSlice],
        here: Here<'_>,
        taken: Taken<'_>,
    ) {
        let Shape { vips, external, ports, sources, choice, mut problems } = shape;
        let (seconds, why) = affinity::seconds_of(spec);
        problems.extend(why);
        let policies = Policies::of(spec, here);
        // Once for all ports: there may be many of both.
        let ranges = [true, false].map(|ipv4| sources.ranges(ipv4));
        let mut reports = Vec::new();
        for named in ports {
            let serving = |vip: &IpAddr| backends::serving(slices, named.wanted(vip.is_ipv4()), here);
            let chosen: Vec<_> = vips.iter().map(|vip| (*vip, serving(vip))).collect();
            if self.reports.is_some() {
                reports.push(named.report(chosen.iter().map(|(_, serving)| serving), policies));
            }
            for (vip, serving) in chosen {
                let ipv4 = vip.is_ipv4();
                let affinity = affinity::of_port(seconds, key, (named.name, named.protocol), ipv4);
                let sources_of = Arc::clone(&ranges[usize::from(!ipv4)]);
                let at_vip = named.at(vip);
                let first = Lead::First(balancer_of(&serving, policies, &at_vip, (affinity, choice), sources_of));
                if !self.add_frontend(key, &named, (Claim::ClusterIp, at_vip, first), taken) {
                    continue;
                }
                for (claim, further) in named.further(ipv4, &external) {
                    let is_limited = claim == Claim::LoadBalancer && sources.limit(ipv4);
                    let for_host = policies.lead_host(claim, further.addr.into());
                    let lead = Lead::Further { first: at_vip, claim, is_limited, for_host };
                    self.add_frontend(key, &named, (claim, further, lead), taken);
                }
            }
        }
        self.problems.extend(problems.into_iter().map(|why| format!("Service {key}: {why}")));
        if let Some(all) = &mut self.reports {
            let (namespace, name) = (key.namespace.to_string(), key.name.to_string());
            let external_ips = external.into_keys().collect();
            let affinity_seconds = seconds;
            let algorithm = algorithm::name(choice.algorithm).to_owned();
            all.push(ServiceReport {
                namespace,
                name,
                cluster_ips: vips,
                external_ips,
                ports: reports,
                affinity_seconds,
                algorithm,
            });
        }
    }

    /// Whether nobody else has it.
    fn add_frontend(
        &mut self,
        service: &'a ObjectKey,
        port: &NamedPort<'a>,
        (claim, key, leads): (Claim, FrontendKey, Lead),
        taken: Taken<'_>,
    ) -> bool {
        self.wanted.push((claim, key));
        if let Some(first) = self.keys.get(&key).map(|first| (*first).clone()).or_else(|| taken(claim, &key)) {
            let (address, number) = (IpAddr::from(key.addr), u16::from_be(key.port));
            let (what, fix) = match leads {
                Lead::HostPort(_) => (format!("hostPort {number} of {address}"), "hostPort"),
                _ if address.is_unspecified() => (format!("nodePort {number}"), "nodePort"),
                _ => (format!("{address} port {number}"), "address or port"),
            };
            let [service, first] = [service, &first].map(host_ports::name_of);
            self.problems.push(format!(
                "{service}: {what}/{} is taken by {first}; give one of them another {fix}",
                port.protocol
            ));
            return false;
        }
        self.keys.insert(key, service);
        let NamedPort { name: port, protocol, .. } = *port;
        self.all.push(Frontend { key, claim, service, port, protocol, leads });
        true
    }

    /// Refuses frontends for which there is no room: without an entry, or with one that has no backend. Those of one Service port are
    /// refused together.
    pub(crate) fn fit(&mut self, room: &Room, numbers: &mut Numbers) {
        let most = room.services;
        let mut further = BTreeMap::<FrontendKey, u64>::new();
        for frontend in &self.all {
            *further.entry(frontend.first()).or_default() += 1;
        }
        // Who was left out has no number.
        let has_entry = |frontend: &Frontend<'_>, _: &_| numbers.services.contains_key(&frontend.key);
        let cost = |frontend: &Frontend<'_>, _: &_| further.get(&frontend.key).copied().unwrap_or(1);
        for key in self.without_room(most, has_entry, cost) {
            let why =
                format!("more than {most} Service addresses times ports: remove Services or raise mapSizes.services");
            self.left_out.insert(key);
            self.refused.insert(key, why);
        }
        let serves = |frontend: &Frontend<'_>, balancer: &DesiredBalancer| {
            has_entry(frontend, balancer) && !numbers.refused.contains(&frontend.key)
        };
        for key in self.without_room(room.members, serves, |_, balancer| balancer.room() as u64) {
            let most = room.members;
            let why = format!(
                "more than {most} backends, source ranges and nodes of rings, which count as eight, of all Services: use fewer or raise mapSizes.members"
            );
            self.refused.insert(key, why);
        }
        numbers.refused = self.refused.keys().copied().collect();
    }

    /// Those that ask for more than there is, by fair shares of their namespaces; who stood already goes last.
    fn without_room(
        &self,
        most: usize,
        stood: impl Fn(&Frontend<'_>, &DesiredBalancer) -> bool,
        cost: impl Fn(&Frontend<'_>, &DesiredBalancer) -> u64,
    ) -> Vec<FrontendKey> {
        let asking = || {
            let first = self.all.iter().filter(|frontend| !self.left_out.contains(&frontend.key));
            first.filter_map(|frontend| Some((frontend, frontend.balancer()?)))
        };
        let wish = |(frontend, balancer): (&Frontend<'a>, &DesiredBalancer)| Wish {
            namespace: &frontend.service.namespace,
            cost: cost(frontend, balancer),
            stood: stood(frontend, balancer),
        };
        let granted = share::grant(most as u64, &asking().map(wish).collect::<Vec<_>>());
        let refused = asking().zip(granted).filter(|(_, granted)| !granted);
        refused.map(|((frontend, _), _)| frontend.key).collect()
    }

    /// Those that need a number each.
    pub(crate) fn number_keys(&self) -> BTreeSet<FrontendKey> {
        let first = self.all.iter().map(Frontend::first);
        first.filter(|key| !self.left_out.contains(key)).collect()
    }

    /// Writes the frontends down, with the numbers they were given.
    pub(crate) fn describe(self, snapshot: &Snapshot, numbers: &Numbers, desired: &mut Desired) {
        desired.problems.extend(self.problems);
        desired.service_reports = self.reports.unwrap_or_default();
        for frontend in self.all {
            let refused = self.refused.get(&frontend.key);
            if let Some(why) = refused {
                let why = format!("does not fit: new flows to {frontend} are refused: {why}");
                desired.problems.push(format!("{}: {why}", host_ports::name_of(frontend.service)));
                // What stands for a workload is no object.
                if let Some(service) = snapshot.services.get(frontend.service) {
                    let uid = service.metadata.uid.as_ref().map(Uid::to_string);
                    let key = frontend.service.clone();
                    desired.refusals.insert(Refusal { kind: RefusedKind::Service, key, uid, why });
                }
            }
            if self.left_out.contains(&frontend.first()) {
                continue;
            }
            // As many have numbers as fit.
            let Some(&service) = numbers.services.get(&frontend.first()) else { continue };
            desired.frontends.insert(frontend.key, entry(service, &frontend.leads));
            desired.service_names.insert(frontend.key, host_ports::shown(frontend.service));
            if let Some(balancer) = frontend.leads.into_balancer() {
                let DesiredBalancer { affinity, choice, first, .. } = balancer;
                let nobody = || DesiredBalancer { affinity, choice, first, ..DesiredBalancer::of([], []) };
                let balancer = if refused.is_some() { nobody() } else { balancer };
                desired.sources.extend(balancer.source_entries(service));
                desired.balancers.insert(service, balancer);
            }
        }
        let addresses: BTreeSet<Addr> = desired.frontends.keys().map(|key| key.addr).collect();
        for addr in addresses {
            let entry = address_entry(&desired.frontends, addr);
            desired.frontends.extend(entry.map(|entry| (FrontendKey::of_address(CLUSTER_NET, addr), entry)));
        }
    }
}

fn member_of(endpoint: &Endpoint<'_>) -> Member {
    Member { addr: Addr::from(endpoint.addr), port: endpoint.port.to_be(), weight: endpoint.parts() }
}
