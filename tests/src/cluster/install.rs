// SPDX-License-Identifier: Apache-2.0

//! Puts Weft on a cluster the way a user does: its image on every node, then `kubectl apply` of the manifest.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use super::binaries::Binaries;
use super::command::output;
use super::images::{COREDNS_IMAGE, WEFT_IMAGE, build_weft_image};
use super::kubectl::Kubectl;
use super::network::NODES;
use super::node::Node;
use super::template::render;
use super::{Cluster, DNS_ADDRESS, ENDPOINT};

/// The workload that the manifest runs on every node.
const AGENT: &str = "daemonset/weft-agent";
/// The workload that removes it.
const CLEANUP: &str = "daemonset/weft-cleanup";
/// Prints what a node still has of Weft. The lock stays, since it is held, and the state's folder, a mount of the pod.
const LEFTOVERS: &str = "ip -o link | grep weft; ip -4 route show table all | grep 'proto 119'
    ip -6 route show table all | grep 'proto 119'; ls -d /sys/fs/bpf/weft 2>/dev/null
    find /run/weft /var/lib/weft ! -type d ! -name agent.lock 2>/dev/null
    ls /etc/cni/net.d /opt/cni/bin | grep weft; true";
/// The line of the manifest that every cluster must set for itself, as it stands there.
const MANIFEST_API_SERVER: &str = "apiServer: https://192.0.2.1:6443";
/// The manifest's choice of how packets travel between nodes.
const MANIFEST_MODE: &str = "mode: vxlan";

/// What `install` puts on a cluster.
#[derive(Clone, Debug)]
pub struct Installation {
    /// What runs on the nodes.
    pub programs: Programs,
    /// The manifest to apply.
    pub manifest: PathBuf,
    /// `vxlan` or `native`.
    pub mode: String,
}

/// Where Weft's image comes from.
#[derive(Clone, Debug)]
pub enum Programs {
    /// From the programs that cargo left in this folder, `target/debug`.
    Built(PathBuf),
    /// It is there, in this archive: what `cargo xtask image` made.
    Image(PathBuf),
}

impl Cluster {
    /// Imports Weft's image on every node, applies the manifest and waits until nodes, agent and DNS work.
    ///
    /// # Errors
    /// The cluster is not up, a program is not built, or something does not come up in time.
    pub fn install(&self, binaries: &Binaries, installation: &Installation) -> Result<()> {
        self.ensure_up()?;
        let manifest = installation.render()?;
        let archive = self.weft_image(&installation.programs)?;
        for member in NODES {
            Node::open(self, member)?.import_images(binaries, &archive, &[WEFT_IMAGE.to_owned()])?;
        }
        let kubectl = Kubectl::new(self, binaries)?;
        // The image's tag never changes: pods of an earlier installation must be told that there is a new one.
        let again = kubectl.exists(AGENT)?;
        kubectl.apply(&manifest)?;
        if again {
            kubectl.restart(AGENT)?;
        }
        kubectl.wait_rolled_out(AGENT)?;
        wait_working(self, binaries)
    }

    /// The archive of the image to import.
    fn weft_image(&self, programs: &Programs) -> Result<PathBuf> {
        match programs {
            Programs::Image(archive) => Ok(archive.clone()),
            Programs::Built(folder) => {
                let archive = self.path("weft-image.tar");
                build_weft_image(folder, &archive)?;
                Ok(archive)
            }
        }
    }

    /// Removes Weft as `manifests/README.md` says, and looks at what it left on the nodes.
    ///
    /// # Errors
    /// A step fails, or a node is not clean.
    pub fn uninstall(&self, binaries: &Binaries, installation: &Installation) -> Result<()> {
        self.ensure_up()?;
        let kubectl = Kubectl::new(self, binaries)?;
        let cleanup =
            fs::read_to_string(installation.manifest.with_file_name("cleanup.yaml")).context("read cleanup.yaml")?;
        kubectl.delete_workload(AGENT)?;
        kubectl.apply(&cleanup)?;
        kubectl.wait_rolled_out(CLEANUP)?;
        for member in NODES {
            let left = output(Node::open(self, member)?.command("sh").args(["-c", LEFTOVERS]))?;
            ensure!(left.trim().is_empty(), "{} is not clean: {left}", member.name);
        }
        kubectl.delete(&cleanup)?;
        kubectl.delete(&installation.render()?)
    }
}

impl Installation {
    /// The manifest with this cluster's own values.
    fn render(&self) -> Result<String> {
        let text = fs::read_to_string(&self.manifest).with_context(|| format!("read {}", self.manifest.display()))?;
        for line in [MANIFEST_API_SERVER, MANIFEST_MODE] {
            ensure!(text.contains(line), "{} has no line `{line}` to set", self.manifest.display());
        }
        let text = text.replace(MANIFEST_API_SERVER, &format!("apiServer: {ENDPOINT}"));
        Ok(text.replace(MANIFEST_MODE, &format!("mode: {}", self.mode)))
    }
}

/// Applies CoreDNS, which starts when there is a network.
///
/// # Errors
/// The API server refuses an object.
pub(crate) fn apply_dns(cluster: &Cluster, binaries: &Binaries) -> Result<()> {
    let values = [("IMAGE", COREDNS_IMAGE.to_owned()), ("ADDRESS", DNS_ADDRESS.to_owned())];
    Kubectl::new(cluster, binaries)?.apply(&render(include_str!("../../cluster/coredns.yaml"), &values)?)
}

/// Waits until the nodes are Ready and CoreDNS answers.
///
/// # Errors
/// They are not in time.
pub(crate) fn wait_working(cluster: &Cluster, binaries: &Binaries) -> Result<()> {
    let kubectl = Kubectl::new(cluster, binaries)?;
    kubectl.wait_nodes_ready()?;
    kubectl.wait_rolled_out("deployment/coredns")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::SERVICE_CIDRS;

    fn manifest(mode: &str) -> String {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/weft.yaml");
        let installation =
            Installation { programs: Programs::Built(PathBuf::new()), manifest: path, mode: mode.to_owned() };
        installation.render().unwrap()
    }

    #[test]
    fn the_manifest_gets_the_clusters_own_values() {
        let text = manifest("native");
        assert!(text.contains(&format!("    apiServer: {ENDPOINT}\n")) && text.contains("    mode: native\n"));
    }

    #[test]
    fn the_manifest_names_the_image_and_no_service_cidrs() {
        let text = manifest("vxlan");
        for cidr in SERVICE_CIDRS.split(',') {
            assert!(!text.contains(cidr), "ServiceCIDR objects have {cidr}");
        }
        assert!(text.contains(&format!("image: {WEFT_IMAGE}\n")));
    }

    #[test]
    fn no_container_is_privileged() {
        assert!(!manifest("vxlan").contains("privileged:"));
    }
}
