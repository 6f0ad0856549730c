// SPDX-License-Identifier: Apache-2.0
//! One NetworkPolicy, read and checked. Whatever is invalid allows nothing, isolates all the same, and is reported.

use std::{collections::BTreeSet, fmt};

use k8s_openapi::{
    api::networking::v1::{NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec},
    apimachinery::pkg::util::intstr::IntOrString,
};
use weft_abi::PROTOCOL_ANY;

use crate::plan::{
    policy::{
        peers::{NamedPort, Peer, PodPeer},
        ports::PortRange,
        selector::Selector,
    },
    protocol,
};

/// Which way a policy judges.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Direction {
    Ingress,
    Egress,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

/// A policy as it is understood.
#[derive(Debug, Default)]
pub(crate) struct PolicyForm {
    /// Whom it isolates.
    pub(crate) selector: Selector,
    /// What it lets in; none: ingress is not its business.
    pub(crate) ingress: Option<Vec<Rule>>,
    /// What it lets out.
    pub(crate) egress: Option<Vec<Rule>>,
    /// What is wrong with it: field and fix.
    pub(crate) problems: Vec<String>,
}

/// One rule: these peers at these ports.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Rule {
    /// None: any peer. An empty list is nobody (every peer was invalid).
    pub(crate) peers: Option<Vec<Peer>>,
    /// Ports by number.
    pub(crate) numeric: Vec<PortRange>,
    /// Ports by name.
    pub(crate) named: Vec<NamedPort>,
}

/// Every port of every protocol.
pub(crate) const ANY_PORT: PortRange = PortRange { protocol: PROTOCOL_ANY, first: 0, last: u16::MAX };

impl PolicyForm {
    /// Reads a policy of `namespace`; never fails.
    pub(crate) fn read(spec: Option<&NetworkPolicySpec>, namespace: &str) -> Self {
        let mut form = Self::default();
        let missing = NetworkPolicySpec::default();
        let spec = spec.unwrap_or(&missing);
        let (ingress, egress) = form.directions(spec);
        form.ingress = ingress.then(|| {
            let rules = spec.ingress.iter().flatten().map(|rule| (rule.from.as_deref(), rule.ports.as_deref()));
            form.rules(rules, "ingress", "from", namespace)
        });
        form.egress = egress.then(|| {
            let rules = spec.egress.iter().flatten().map(|rule| (rule.to.as_deref(), rule.ports.as_deref()));
            form.rules(rules, "egress", "to", namespace)
        });
        match spec.pod_selector.as_ref().map_or(Ok(Selector::everything()), Selector::parse) {
            Ok(selector) => form.selector = selector,
            Err(why) => form.close(&why),
        }
        form
    }

    /// Whom it means is unknown: it isolates everybody of its namespace and allows nobody.
    fn close(&mut self, why: &str) {
        self.problems.push(format!("spec.podSelector.{why}"));
        self.selector = Selector::everything();
        for rules in [&mut self.ingress, &mut self.egress].into_iter().flatten() {
            rules.clear();
        }
    }

    /// Without `policyTypes`: ingress, and egress where there is an egress rule.
    fn directions(&mut self, spec: &NetworkPolicySpec) -> (bool, bool) {
        let types = spec.policy_types.as_deref().unwrap_or_default();
        if types.is_empty() {
            return (true, spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()));
        }
        let Some(unknown) = types.iter().find(|name| *name != "Ingress" && *name != "Egress") else {
            return (types.iter().any(|name| name == "Ingress"), types.iter().any(|name| name == "Egress"));
        };
        self.problems.push(format!("spec.policyTypes: '{unknown}' is not Ingress or Egress"));
        (true, true)
    }

    fn rules<'a>(
        &mut self,
        rules: impl Iterator<Item = (Option<&'a [NetworkPolicyPeer]>, Option<&'a [NetworkPolicyPort]>)>,
        direction: &str,
        peers_field: &str,
        namespace: &str,
    ) -> Vec<Rule> {
        let mut read = Vec::new();
        for (index, (peers, ports)) in rules.enumerate() {
            let field = format!("spec.{direction}[{index}]");
            let mut rule = Rule { peers: None, numeric: Vec::new(), named: Vec::new() };
            if let Some(peers) = peers.filter(|peers| !peers.is_empty()) {
                let peers = peers.iter().map(|peer| Peer::parse(peer, namespace));
                rule.peers = Some(self.keep_valid(peers, &format!("{field}.{peers_field}")));
            }
            match ports.filter(|ports| !ports.is_empty()) {
                None => rule.numeric.push(ANY_PORT),
                Some(ports) => {
                    for port in self.keep_valid(ports.iter().map(read_port), &format!("{field}.ports")) {
                        match port {
                            Port::Number(port) => rule.numeric.push(port),
                            Port::Name(port) => rule.named.push(port),
                        }
                    }
                }
            }
            read.push(rule);
        }
        read
    }

    fn keep_valid<T>(&mut self, items: impl Iterator<Item = Result<T, String>>, field: &str) -> Vec<T> {
        let mut valid = Vec::new();
        for (index, item) in items.enumerate() {
            match item {
                Ok(item) => valid.push(item),
                Err(why) => self.problems.push(format!("{field}[{index}].{why}")),
            }
        }
        valid
    }

    /// The pods whose labels and named ports it asks for, beside those that it selects. Who means every pod asks for none, unless by
    /// the name of a port.
    pub(crate) fn pod_peers(&self) -> BTreeSet<PodPeer> {
        let mut found = BTreeSet::new();
        for (direction, rules) in [(Direction::Ingress, &self.ingress), (Direction::Egress, &self.egress)] {
            for Rule { peers, named, .. } in rules.iter().flatten() {
                match peers {
                    // Whatever pod it is, it numbers the port.
                    None if direction == Direction::Egress && !named.is_empty() => drop(found.insert(PodPeer::all())),
                    None => {}
                    Some(peers) => {
                        let names = direction == Direction::Egress && !named.is_empty();
                        let asked = peers.iter().filter_map(Peer::as_pods);
                        found.extend(asked.filter(|peer| names || !peer.is_everybody()).cloned());
                    }
                }
            }
        }
        found
    }

    /// The rules of one direction; none: it does not isolate that way.
    pub(crate) fn rules_of(&self, direction: Direction) -> Option<&[Rule]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }
}

enum Port {
    Number(PortRange),
    Name(NamedPort),
}

fn read_port(port: &NetworkPolicyPort) -> Result<Port, String> {
    let NetworkPolicyPort { end_port, port, protocol } = port;
    let name = protocol.as_deref().unwrap_or("TCP");
    let protocol = protocol::number(name).ok_or_else(|| format!("protocol: '{name}' is not TCP, UDP or SCTP"))?;
    let (first, last) = match (port, end_port) {
        (None, None) => (0, u16::MAX),
        (Some(IntOrString::String(name)), None) if !name.is_empty() => {
            return Ok(Port::Name(NamedPort { name: name.clone(), protocol }));
        }
        (Some(IntOrString::Int(first)), None) => (read_number(*first, "port")?, read_number(*first, "port")?),
        (Some(IntOrString::Int(first)), Some(last)) => (read_number(*first, "port")?, read_number(*last, "endPort")?),
        (Some(IntOrString::String(_)), None) => return Err("port: the name is empty".into()),
        (_, Some(_)) => return Err("endPort: needs a numeric port beside it".into()),
    };
    if last < first {
        return Err(format!("endPort: {last} is less than port {first}"));
    }
    Ok(Port::Number(PortRange { protocol, first, last }))
}

fn read_number(number: i32, field: &str) -> Result<u16, String> {
    let valid = u16::try_from(number).ok().filter(|number| *number != 0);
    valid.ok_or_else(|| format!("{field}: {number} is not between 1 and 65535"))
}
