// SPDX-License-Identifier: Apache-2.0
//! Leaves of each object what the plan reads. Memory then follows the cluster's size, not the size of its manifests, and an
//! update of what nobody reads (heartbeats, resource versions) is no change.

use k8s_openapi::{
    api::{
        core::v1::{Container, Namespace, Node, NodeSpec, NodeStatus, Pod, PodSpec, PodStatus, Service},
        discovery::v1::EndpointSlice,
        networking::v1::NetworkPolicy,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

/// On the API's copy of a static pod: its uid at the container runtime.
const KEPT_ANNOTATION: &str = "kubernetes.io/config.mirror";

/// The whole manifest once more, as a text.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Forgets what the plan does not read.
pub(crate) trait Strip {
    /// Does so.
    fn strip(&mut self);
}

fn strip_metadata(metadata: &mut ObjectMeta) {
    metadata.managed_fields = None;
    metadata.resource_version = None;
    metadata.owner_references = None;
    metadata.finalizers = None;
    metadata.generation = None;
    if let Some(annotations) = &mut metadata.annotations {
        annotations.remove(LAST_APPLIED);
    }
}

impl Strip for Pod {
    fn strip(&mut self) {
        strip_metadata(&mut self.metadata);
        if let Some(annotations) = &mut self.metadata.annotations {
            annotations.retain(|key, _| key == KEPT_ANNOTATION);
        }
        self.spec = self.spec.take().map(|spec| PodSpec {
            node_name: spec.node_name,
            host_network: spec.host_network,
            containers: named_ports(spec.containers),
            init_containers: spec.init_containers.map(named_ports),
            ..PodSpec::default()
        });
        self.status = self.status.take().map(|status| PodStatus {
            phase: status.phase,
            pod_ip: status.pod_ip,
            pod_ips: status.pod_ips,
            ..PodStatus::default()
        });
    }
}

/// Of containers only the names of their ports matter.
fn named_ports(containers: Vec<Container>) -> Vec<Container> {
    let stripped = containers.into_iter().filter_map(|container| {
        let mut ports = container.ports.unwrap_or_default();
        ports.retain(|port| port.name.is_some());
        let restart_policy = container.restart_policy;
        (!ports.is_empty()).then(|| Container { ports: Some(ports), restart_policy, ..Container::default() })
    });
    stripped.collect()
}

impl Strip for Namespace {
    fn strip(&mut self) {
        strip_metadata(&mut self.metadata);
        self.metadata.annotations = None;
        self.spec = None;
        self.status = None;
    }
}

impl Strip for Node {
    fn strip(&mut self) {
        strip_metadata(&mut self.metadata);
        self.metadata.annotations = None;
        self.spec = self.spec.take().map(|spec| NodeSpec {
            pod_cidr: spec.pod_cidr,
            pod_cidrs: spec.pod_cidrs,
            ..NodeSpec::default()
        });
        self.status =
            self.status.take().map(|status| NodeStatus { addresses: status.addresses, ..NodeStatus::default() });
    }
}

impl Strip for Service {
    fn strip(&mut self) {
        strip_metadata(&mut self.metadata);
    }
}

impl Strip for EndpointSlice {
    fn strip(&mut self) {
        strip_metadata(&mut self.metadata);
        self.metadata.annotations = None;
        for endpoint in self.endpoints.iter_mut().flatten() {
            endpoint.target_ref = None;
            endpoint.hostname = None;
            endpoint.deprecated_topology = None;
        }
    }
}

impl Strip for NetworkPolicy {
    fn strip(&mut self) {
        strip_metadata(&mut self.metadata);
    }
}
