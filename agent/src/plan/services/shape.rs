// SPDX-License-Identifier: Apache-2.0
//! What a Service asks for: addresses and ports, with their defaults filled in.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use weft_abi::{Addr, FrontendKey};
use weft_api::{BackendReport, ServicePortReport};

use super::{Policies, claim::Claim, cluster_ips, external, sources::Sources};
use crate::{
    model::{
        DesiredChoice, ObjectKey,
        objects::{Service, ServicePort, ServiceSpec},
    },
    plan::{
        address::parse_ip,
        backends::{Endpoint, Here, Serving, Wanted},
        choice, protocol,
    },
};

// What the agent does not tell is what the programs go by.
const _: () = assert!(weft_api::USUAL_WEIGHT == weft_abi::DEFAULT_WEIGHT);

/// The addresses and ports of one Service.
pub(super) struct Shape<'a> {
    /// ClusterIPs.
    pub(super) vips: Vec<IpAddr>,
    /// Addresses beyond the cluster.
    pub(super) external: BTreeMap<IpAddr, Claim>,
    pub(super) ports: Vec<NamedPort<'a>>,
    pub(super) choice: DesiredChoice,
    /// Clients of its load balancer; none where that has no address.
    pub(super) sources: Sources,
    /// What of it counts for nothing, and what else is wrong.
    pub(super) problems: Vec<String>,
}

impl<'a> Shape<'a> {
    /// That of a Service.
    pub(super) fn of(key: &ObjectKey, service: &'a Service, spec: &'a ServiceSpec, here: Here<'_>) -> Self {
        let (mut vips, mut problems) = (Vec::new(), Vec::new());
        let (choice, why) = choice::of(key, service, here.facts.exposure.algorithm);
        problems.extend(why);
        for text in cluster_ips(spec) {
            match parse_ip(text) {
                Some(vip) => vips.push(vip),
                None => problems.push(format!("spec.clusterIPs: '{text}' is not an IP address")),
            }
        }
        let mut external = external::addresses(service, spec, here, &mut problems);
        external.retain(|address, _| !vips.contains(address));
        let (mut ports, mut names) = (Vec::new(), BTreeSet::new());
        for port in spec.ports.iter().flatten() {
            match NamedPort::of(port) {
                Err(why) => problems.push(format!("spec.ports '{}': {why}", name_of(port))),
                Ok(named) if !names.insert((named.name, named.protocol)) => {
                    problems.push(format!("spec.ports has two ports named '{}'", named.name));
                }
                Ok(named) => ports.push(named),
            }
        }
        let mut sources = Sources::of(spec, &mut problems);
        let mut balanced =
            external.iter().filter(|(_, claim)| **claim == Claim::LoadBalancer).map(|(address, _)| address);
        let is_open = |address: &&IpAddr| {
            sources.leave_open(address.is_ipv4()) && vips.iter().any(|vip| vip.is_ipv4() == address.is_ipv4())
        };
        problems.extend(balanced.clone().filter(is_open).map(|open| {
            format!("spec.loadBalancerSourceRanges has none of the family of {open}: it serves everybody")
        }));
        if balanced.next().is_none() {
            sources = Sources::default();
        }
        Self { vips, external, ports, choice, sources, problems }
    }

    /// What it asks for, each with the frontend that leads where this one does, if it is another.
    pub(super) fn asked(&self) -> impl Iterator<Item = (Claim, FrontendKey, Option<FrontendKey>)> {
        let ways = self.ports.iter().flat_map(|port| self.vips.iter().map(move |vip| (port, *vip)));
        // Of two ports with one number the second one gets nothing.
        let mut known = BTreeSet::new();
        ways.filter(move |(port, vip)| known.insert(port.at(*vip))).flat_map(|(port, vip)| {
            let further = port.further(vip.is_ipv4(), &self.external).into_iter();
            let further = further.map(move |(claim, frontend)| (claim, frontend, Some(port.at(vip))));
            further.chain([(Claim::ClusterIp, port.at(vip), None)])
        })
    }
}

/// A Service port with its defaults filled in.
pub(super) struct NamedPort<'a> {
    pub(super) name: &'a str,
    pub(super) protocol: &'a str,
    pub(super) number: u8,
    pub(super) port: u16,
    /// 0: it has none.
    pub(super) node_port: u16,
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
        let asked = port.node_port.unwrap_or_default();
        let node_port = u16::try_from(asked).map_err(|_| format!("nodePort: {asked} is not between 1 and 65535"))?;
        Ok(Self { name: name_of(port), protocol, number, port: port_number, node_port })
    }

    pub(super) const fn wanted(&self, ipv4: bool) -> Wanted<'a> {
        Wanted { port: self.name, protocol: self.protocol, ipv4 }
    }

    /// Its frontend at this address.
    pub(super) fn at(&self, address: IpAddr) -> FrontendKey {
        FrontendKey::of_cluster(Addr::from(address), self.port.to_be(), self.number)
    }

    /// Its frontends beside that of a ClusterIP of this family.
    pub(super) fn further(&self, ipv4: bool, external: &BTreeMap<IpAddr, Claim>) -> Vec<(Claim, FrontendKey)> {
        let like = if ipv4 { Addr::v4(0) } else { Addr::UNSPECIFIED };
        let node_port = FrontendKey::of_node_port(&like, self.node_port.to_be(), self.number);
        let addresses = external.iter().filter(|(address, _)| address.is_ipv4() == ipv4);
        let addresses = addresses.map(|(address, claim)| (*claim, self.at(*address)));
        (self.node_port != 0).then_some((Claim::NodePort, node_port)).into_iter().chain(addresses).collect()
    }

    /// Who its clients get, of ClusterIPs or from elsewhere.
    pub(super) fn report<'e>(
        &self,
        serving: impl Iterator<Item = &'e Serving<'e>>,
        Policies { internal, external, here }: Policies<'_>,
    ) -> ServicePortReport {
        let chosen = serving.flat_map(|serving| {
            let chosen = [internal, external].map(|local| serving.chosen(local, here));
            let is_chosen = |endpoint: &&Endpoint<'_>| chosen.iter().any(|chosen| chosen.contains(endpoint));
            serving.all().iter().filter(is_chosen).collect::<Vec<_>>()
        });
        ServicePortReport {
            name: self.name.to_owned(),
            protocol: self.protocol.to_owned(),
            port: self.port,
            node_port: (self.node_port != 0).then_some(self.node_port),
            backends: chosen
                .map(|endpoint| BackendReport {
                    address: endpoint.addr,
                    port: endpoint.port,
                    node: endpoint.node.map(str::to_owned),
                    state: endpoint.state().to_owned(),
                    weight: endpoint.parts(),
                })
                .collect(),
        }
    }
}
