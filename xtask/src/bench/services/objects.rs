// SPDX-License-Identifier: Apache-2.0

//! The objects that both sides are served: the Service that is measured, and as many others as there are to be.

use std::net::Ipv4Addr;

use anyhow::Result;
use serde_json::{Value, json};
use weft_testbed::apiserver::{ApiServer, Kind, Population};

/// A Service that is measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Front {
    pub(super) name: &'static str,
    pub(super) vip: Ipv4Addr,
    /// Of the Service and of its backends.
    pub(super) port: u16,
}

/// Short connections go to it.
pub(super) const LOAD: Front = Front { name: "load", vip: Ipv4Addr::new(10, 96, 0, 20), port: 5201 };
/// Its backend changes.
pub(super) const CHANGE: Front = Front { name: "change", vip: Ipv4Addr::new(10, 96, 0, 21), port: 5202 };

impl Front {
    /// The Service, without a selector: its slices are written here.
    pub(super) fn service(&self) -> Value {
        let vip = self.vip.to_string();
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"namespace": "default", "name": self.name, "uid": self.name, "creationTimestamp": "2026-01-15T09:30:00Z"},
            "spec": {
                "type": "ClusterIP", "clusterIP": vip, "clusterIPs": [vip], "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
                "internalTrafficPolicy": "Cluster", "sessionAffinity": "None",
                "ports": [{"name": "tcp", "protocol": "TCP", "port": self.port, "targetPort": self.port}],
            },
            "status": {"loadBalancer": {}},
        })
    }

    /// The same with a NodePort.
    pub(super) fn exposed(&self, number: u16) -> Value {
        let mut service = self.service();
        service["spec"]["type"] = json!("NodePort");
        service["spec"]["externalTrafficPolicy"] = json!("Cluster");
        service["spec"]["ports"][0]["nodePort"] = json!(number);
        service
    }

    /// Its only slice: these backends, all on one node.
    pub(super) fn slice(&self, node: &str, backends: &[Ipv4Addr]) -> Value {
        let endpoint = |address: &Ipv4Addr| {
            json!({
                "addresses": [address.to_string()], "nodeName": node,
                "conditions": {"ready": true, "serving": true, "terminating": false},
            })
        };
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {
                "namespace": "default", "name": format!("{}-x7k2p", self.name), "uid": format!("{}-slice", self.name),
                "labels": {"kubernetes.io/service-name": self.name},
            },
            "ports": [{"name": "tcp", "protocol": "TCP", "port": self.port}],
            "endpoints": backends.iter().map(endpoint).collect::<Vec<_>>(),
        })
    }
}

/// Services and endpoints of each, beside those that are measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub(super) services: usize,
    pub(super) endpoints: usize,
}

impl Size {
    /// The cluster of the node `here`, whose own address it does not know.
    pub(super) fn population(self, here: &str) -> Population {
        Population {
            here: here.to_owned(),
            nodes: 100,
            pods_per_node: 30,
            services: self.services,
            endpoints: self.endpoints,
            policies: 0,
            everyone: false,
        }
    }
}

/// Serves a Service with these backends.
pub(super) fn put(server: &ApiServer, front: &Front, node: &str, backends: &[Ipv4Addr]) -> Result<()> {
    server.put(Kind::Services, front.service())?;
    server.put(Kind::EndpointSlices, front.slice(node, backends)).map(drop)
}
