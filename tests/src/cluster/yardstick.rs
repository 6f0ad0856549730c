// SPDX-License-Identifier: Apache-2.0

//! The network that Weft is compared with: the bridge plugin with host-local addresses, static routes between the nodes, and
//! kube-proxy in nftables mode.

use anyhow::{Context, Result};
use serde_json::json;

use super::binaries::Binaries;
use super::control_plane::write_kubeconfig;
use super::install::wait_working;
use super::kubectl::Kubectl;
use super::network::{Member, NODES, route_pods};
use super::node::Node;
use super::template::render;
use super::{Cluster, POD_CIDRS};

/// Plugins that the bridge configuration names.
const PLUGINS: [&str; 3] = ["bridge", "host-local", "portmap"];

/// Installs the yardstick on all nodes and waits until the cluster works.
///
/// # Errors
/// A plugin is missing, or the cluster does not come up in time.
pub(crate) fn install(cluster: &Cluster, binaries: &Binaries) -> Result<()> {
    let kubectl = Kubectl::new(cluster, binaries)?;
    for member in NODES {
        let node = Node::open(cluster, member)?;
        let cidrs = kubectl.pod_cidrs(&member)?;
        for other in NODES.iter().filter(|other| **other != member) {
            route_pods(&cluster.name, other, &member, &cidrs)?;
        }
        start_proxy(cluster, binaries, &node)?;
        install_plugins(binaries, &node, &cidrs)?;
    }
    wait_working(cluster, binaries)
}

fn install_plugins(binaries: &Binaries, node: &Node<'_>, cidrs: &[String]) -> Result<()> {
    for plugin in PLUGINS {
        node.install_cni_plugin(binaries, plugin)?;
    }
    let list = node.write("10-bridge.conflist", &configuration(cidrs))?;
    node.run("mkdir", &["-p", "/etc/cni/net.d"])?;
    node.run("cp", &[&list.to_string_lossy(), "/etc/cni/net.d/"])
}

fn configuration(cidrs: &[String]) -> String {
    let ranges: Vec<_> = cidrs.iter().map(|cidr| json!([{"subnet": cidr}])).collect();
    json!({
        "cniVersion": "1.0.0",
        "name": "bridge",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": true,
                "hairpinMode": true,
                "ipam": {"type": "host-local", "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]},
            },
            {"type": "portmap", "capabilities": {"portMappings": true}, "backend": "nftables"},
        ],
    })
    .to_string()
}

fn start_proxy(cluster: &Cluster, binaries: &Binaries, node: &Node<'_>) -> Result<()> {
    let Member { name, .. } = node.member;
    let kubeconfig = write_kubeconfig(cluster, "proxy")?.to_string_lossy().into_owned();
    let values = [("KUBECONFIG", kubeconfig), ("POD_CIDRS", POD_CIDRS.to_owned()), ("NODE", name.to_owned())];
    let config = node.write("kube-proxy.yaml", &render(include_str!("../../cluster/kube-proxy.yaml"), &values)?)?;
    let mut proxy = node.command(binaries.path("kube-proxy")?);
    proxy.arg("--config").arg(config).env("PATH", binaries.search_path());
    cluster.daemons.start(&format!("{name}-kube-proxy"), &mut proxy).context("start kube-proxy").map(drop)
}
