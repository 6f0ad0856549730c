// SPDX-License-Identifier: Apache-2.0

//! A generated cluster: nodes, pods with their applications, Services of these, policies that select the pods of one node.

mod kinds;
mod template;

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use anyhow::{Result, ensure};
use serde_json::Value;

use super::{ApiServer, Generate, Key, Kind};
use crate::Bed;

/// A cluster's size. Node 0 is the one under test.
///
/// Every application has as many pods as a Service has endpoints; each is in one namespace, each namespace has one of ten
/// teams. Policy `p` selects one pod of node 0 and lets one application in, on a port of its own; of fifty, one lets whole
/// namespaces of a team in instead (of three teams), and of four, one restricts egress too.
#[derive(Clone, Debug)]
pub struct Population {
    /// The name of node 0.
    pub here: String,
    /// Nodes.
    pub nodes: usize,
    /// Pods of each node.
    pub pods_per_node: usize,
    /// Services.
    pub services: usize,
    /// Endpoints of each Service.
    pub endpoints: usize,
    /// Policies.
    pub policies: usize,
    /// Whether one more policy lets all pods of all namespaces in.
    pub everyone: bool,
}

impl Population {
    /// Whether the numbers go together.
    ///
    /// # Errors
    /// They do not; the message names which.
    pub fn check(&self) -> Result<()> {
        ensure!(self.nodes >= 2 && self.nodes <= 30_000, "nodes: from 2 to 30000");
        ensure!((1..=200).contains(&self.pods_per_node), "pods: from 1 to 200 for each node");
        ensure!(self.services >= 1 && self.services <= 60_000, "services: from 1 to 60000");
        ensure!(self.endpoints >= 1 && self.endpoints <= self.remote_pods(), "pods: more than a Service has endpoints");
        Ok(())
    }

    /// Makes `server` serve all of it.
    pub fn install(&self, server: &ApiServer) {
        for (kind, objects) in self.objects() {
            server.generate(kind, objects);
        }
    }

    /// Makes `server` serve Service `number` and its slice, which the watches are told of.
    ///
    /// # Errors
    /// Never, for objects that are generated.
    pub fn put_service(&self, server: &ApiServer, number: usize) -> Result<()> {
        let (service, slice) = (kinds::Services(self.clone()).text(number), kinds::Slices(self.clone()).text(number));
        server.put(Kind::Services, serde_json::from_str(&service)?)?;
        server.put(Kind::EndpointSlices, serde_json::from_str(&slice)?).map(drop)
    }

    /// Puts all of it into the folder that the agents of `bed` read, but for this node, of which they tell themselves.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn place(&self, bed: &Bed) -> Result<()> {
        for (kind, objects) in self.objects() {
            let first = usize::from(kind == Kind::Nodes);
            let texts = (first..objects.count()).map(|index| Self::as_manifest(kind, &objects.text(index)));
            let texts = texts.collect::<Result<Vec<_>>>()?;
            bed.place(&format!("generated-{}.yaml", kind.plural()), &texts.join("\n---\n"))?;
        }
        Ok(())
    }

    /// A Service's selector would make slices beside those that there are.
    fn as_manifest(kind: Kind, text: &str) -> Result<String> {
        let mut object: Value = serde_json::from_str(text)?;
        if let Some(spec) = object["spec"].as_object_mut().filter(|_| kind == Kind::Services) {
            spec.remove("selector");
        }
        Ok(object.to_string())
    }

    fn objects(&self) -> [(Kind, Arc<dyn Generate>); 6] {
        [
            (Kind::Namespaces, Arc::new(kinds::Namespaces(self.clone()))),
            (Kind::Nodes, Arc::new(kinds::Nodes(self.clone()))),
            (Kind::Pods, Arc::new(kinds::Pods::new(self))),
            (Kind::Services, Arc::new(kinds::Services(self.clone()))),
            (Kind::EndpointSlices, Arc::new(kinds::Slices(self.clone()))),
            (Kind::NetworkPolicies, Arc::new(kinds::Policies(self.clone()))),
        ]
    }

    /// All pods.
    #[must_use]
    pub fn pods(&self) -> usize {
        self.nodes * self.pods_per_node
    }

    /// Pods of other nodes.
    #[must_use]
    pub fn remote_pods(&self) -> usize {
        (self.nodes - 1) * self.pods_per_node
    }

    /// Applications that have pods on other nodes.
    #[must_use]
    pub fn apps(&self) -> usize {
        (self.remote_pods() / self.endpoints).max(1)
    }

    /// How many namespaces.
    #[must_use]
    pub fn namespaces(&self) -> usize {
        (self.nodes / 25).clamp(10, 200)
    }

    /// Name of namespace `number`.
    #[must_use]
    pub fn namespace(&self, number: usize) -> String {
        format!("ns-{}", number % self.namespaces())
    }

    /// Key of the pod `number` of this node.
    #[must_use]
    pub fn local_pod(&self, number: usize) -> Key {
        Key::new(&self.namespace(number), &format!("local-{number}"))
    }

    /// Key of pod `number` of the other nodes.
    #[must_use]
    pub fn remote_pod(&self, number: usize) -> Key {
        Key::new(&self.namespace(self.app(number)), &format!("pod-{number}"))
    }

    /// The application of pod `number` of the other nodes.
    #[must_use]
    pub fn app(&self, number: usize) -> usize {
        number / self.endpoints % self.apps()
    }

    /// Addresses of pod `number` of the other nodes.
    #[must_use]
    pub fn remote_addresses(&self, number: usize) -> (Ipv4Addr, Ipv6Addr) {
        let (node, place) = (1 + number % (self.nodes - 1), number / (self.nodes - 1));
        let host = u8::try_from(place + 10).unwrap_or(u8::MAX);
        let (v4, v6) = self.cidrs(node);
        let v4 = Ipv4Addr::from(u32::from(v4) + u32::from(host));
        (v4, Ipv6Addr::from(u128::from(v6) + u128::from(host)))
    }

    /// Pod CIDRs of node `number`, of 24 and 64 bits.
    #[must_use]
    pub fn cidrs(&self, number: usize) -> (Ipv4Addr, Ipv6Addr) {
        if number == 0 {
            // As the testbed gives its first node.
            return (Ipv4Addr::new(10, 244, 1, 0), Ipv6Addr::new(0xfd00, 0x244, 0, 1, 0, 0, 0, 0));
        }
        let number = u32::try_from(number).unwrap_or_default();
        let v4 = u32::from(Ipv4Addr::new(10, 128, 0, 0)) + number * 256;
        let group = u16::try_from(number).unwrap_or_default();
        (v4.into(), Ipv6Addr::new(0xfd00, 0x128, 0, group, 0, 0, 0, 0))
    }

    /// Key of Service `number`.
    #[must_use]
    pub fn service(&self, number: usize) -> Key {
        Key::new(&self.namespace(number % self.apps()), &format!("svc-{number}"))
    }

    /// Key of that Service's slice.
    #[must_use]
    pub fn slice(&self, number: usize) -> Key {
        Key { name: format!("svc-{number}-x7k2p"), ..self.service(number) }
    }

    /// Cluster address of Service `number`; its port is 80.
    #[must_use]
    pub fn vip(&self, number: usize) -> Ipv4Addr {
        let number = u32::try_from(number).unwrap_or_default();
        Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 96, 1, 0)) + number)
    }

    /// Remote pods behind Service `number`.
    pub fn backends(&self, number: usize) -> impl Iterator<Item = usize> + use<> {
        let first = number % self.apps() * self.endpoints;
        first..first + self.endpoints
    }

    /// Key of policy `number`.
    #[must_use]
    pub fn policy(&self, number: usize) -> Key {
        Key::new(&self.namespace(number % self.pods_per_node), &format!("policy-{number}"))
    }

    /// The application that policy `number` lets in, and the port.
    #[must_use]
    pub fn admitted(&self, number: usize) -> (usize, u16) {
        (number * 7 % self.apps(), u16::try_from(1000 + number % 30_000).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests;
