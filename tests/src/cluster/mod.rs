// SPDX-License-Identifier: Apache-2.0

//! A real Kubernetes on one machine: a control plane and two nodes as namespaces, from the upstream programs.
//!
//! `up` makes a cluster without CNI plugin and without kube-proxy, `install` puts Weft on it the way a user does, `e2e` runs
//! upstream's own tests against it, `down` removes every trace. Several clusters may exist under different names.

mod binaries;
mod cgroups;
mod command;
mod control_plane;
mod daemon;
mod device;
mod e2e;
mod images;
mod install;
mod kubectl;
mod network;
mod node;
mod pki;
mod place;
mod template;
mod yardstick;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

pub use binaries::{Binaries, cache_directory};
pub use control_plane::ENDPOINT;
pub use e2e::{Outcome, REQUIRED, Selection};
pub use images::{WEFT_IMAGE, build_test_images, build_weft_image};
pub use install::{Installation, Programs};
pub use network::{CONTROL_PLANE, Member, NODES, OUTSIDE, namespace};

use command::{command, run, run_attached};
use daemon::Daemons;
use kubectl::Kubectl;
use node::Node;
use place::Place;

/// Where the clusters of this machine keep their state.
const STATE: &str = "/run/weft-testbed";
/// Most of it is two nodes' images, about 1 GiB each.
const STATE_OPTIONS: &str = "mode=755,size=12g";
/// Pod addresses of the cluster: each node gets a /24 and a /64 of them.
pub const POD_CIDRS: &str = "10.244.0.0/16,fd00:10:244::/56";
/// Service addresses of the cluster.
pub const SERVICE_CIDRS: &str = "10.96.0.0/16,fd00:10:96::/112";
/// The first Service address of each family: the API server's own.
const SERVICE_CIDRS_FIRST: [&str; 2] = ["10.96.0.1", "fd00:10:96::1"];
/// Service address of CoreDNS.
const DNS_ADDRESS: &str = "10.96.0.10";

/// What provides the pods' network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cni {
    /// Nothing: the nodes stay NotReady until one is installed.
    None,
    /// The bridge plugin with static routes, and kube-proxy in nftables mode: what Weft is compared with.
    Bridge,
}

/// One cluster of this machine, running or not.
#[derive(Clone, Debug)]
pub struct Cluster {
    name: String,
    state: PathBuf,
    daemons: Daemons,
}

impl Cluster {
    /// Returns the cluster of that name; nothing is started.
    ///
    /// # Errors
    /// The name is empty, longer than 16 characters, or has others than lower-case letters, digits and `-`.
    pub fn named(name: &str) -> Result<Self> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        ensure!(
            (1..=16).contains(&name.len()) && name.bytes().all(allowed),
            "cluster name {name:?}: use 1 to 16 lower-case letters, digits and '-'"
        );
        let state = Path::new(STATE).join(name);
        let daemons = Daemons { records: state.join("processes"), logs: state.join("logs") };
        Ok(Self { name: name.to_owned(), state, daemons })
    }

    /// Makes the cluster. What was made of one that fails half-way stays for inspection until `down`.
    ///
    /// # Errors
    /// It exists already, a program or image is missing, or a part does not come up.
    pub fn up(&self, binaries: &Binaries, cni: Cni) -> Result<()> {
        let images = build_test_images(binaries)?;
        self.create_state()?;
        network::create(&self.name)?;
        control_plane::start(self, binaries)?;
        self.start_nodes(binaries, &images)?;
        self.route_control_plane(binaries)?;
        install::apply_dns(self, binaries)?;
        match cni {
            Cni::None => Ok(()),
            Cni::Bridge => yardstick::install(self, binaries),
        }
    }

    /// Ends the cluster's processes and removes its namespaces, cgroups and files. A cluster that is not there is no error.
    ///
    /// # Errors
    /// Something stays behind: the error lists all of it.
    pub fn down(&self) -> Result<()> {
        let mut failures = Vec::new();
        let mut step = |result: Result<()>| failures.extend(result.err().map(|error| format!("{error:#}")));
        for name in self.daemons.names()?.into_iter().filter(|name| !name.ends_with("-anchor")) {
            step(self.daemons.stop(&name));
        }
        for member in NODES.iter().chain([&CONTROL_PLANE]) {
            step(cgroups::remove(&self.cgroup(member)));
        }
        for name in self.daemons.names()? {
            step(self.daemons.stop(&name));
        }
        step(network::remove(&self.name));
        step(self.remove_state());
        ensure!(failures.is_empty(), "cluster {} is not gone:\n{}", self.name, failures.join("\n"));
        Ok(())
    }

    /// Runs kubectl as the cluster's administrator with the caller's own stdin and stdout.
    ///
    /// # Errors
    /// The cluster is not up, or kubectl fails.
    pub fn kubectl(&self, binaries: &Binaries, arguments: &[String]) -> Result<()> {
        self.ensure_up()?;
        run_attached(Kubectl::new(self, binaries)?.command().args(arguments))
    }

    /// Runs a program in a node (`node1`, `node2`) with the caller's own stdin and stdout.
    ///
    /// # Errors
    /// There is no such node, it is not up, or the program fails.
    pub fn execute(&self, node: &str, arguments: &[String]) -> Result<()> {
        let member = NODES.into_iter().find(|member| member.name == node);
        let member = member.with_context(|| format!("there is no node {node:?}: use node1 or node2"))?;
        let (program, arguments) = arguments.split_first().context("no program is given")?;
        run_attached(Node::open(self, member)?.command(program).args(arguments))
    }

    /// Fails unless the control plane runs.
    fn ensure_up(&self) -> Result<()> {
        if self.daemons.running("kube-apiserver")?.is_none() {
            bail!("cluster {} is not up: run `cargo xtask cluster --name {} up`", self.name, self.name);
        }
        Ok(())
    }

    fn create_state(&self) -> Result<()> {
        ensure!(nix::unistd::geteuid().is_root(), "a cluster needs root: it makes namespaces, mounts and cgroups");
        ensure!(
            !self.state.exists(),
            "cluster {} exists already ({}): take it down with `cargo xtask cluster --name {} down`",
            self.name,
            self.state.display(),
            self.name
        );
        fs::create_dir_all(&self.state).with_context(|| format!("create {}", self.state.display()))?;
        // In memory: importing images is faster, and one unmount removes them.
        run(command("mount", ["-t", "tmpfs", "-o", STATE_OPTIONS, "weft-testbed"]).arg(&self.state))?;
        let nodes = NODES.iter().map(|node| self.path(node.name));
        for directory in [self.daemons.records.clone(), self.daemons.logs.clone()].into_iter().chain(nodes) {
            fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
        }
        Ok(())
    }

    /// Removes the cluster's directory. Only directories may be left of it when nothing is mounted there any more.
    fn remove_state(&self) -> Result<()> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
        let mark = format!(" {} ", self.state.display());
        if mounts.lines().any(|line| line.contains(&mark)) {
            run(command("umount", [] as [&str; 0]).arg(&self.state))?;
        }
        if self.state.exists() {
            fs::remove_dir(&self.state).with_context(|| format!("remove {}", self.state.display()))?;
        }
        Ok(())
    }

    /// Starts all nodes at the same time: most of a node's start is the import of its images.
    fn start_nodes(&self, binaries: &Binaries, images: &Path) -> Result<()> {
        let start = |member| {
            let node = Node::create(self, member)?;
            node.start_containerd(binaries)?;
            node.import_images(binaries, images, &images::test_image_references())?;
            node.start_kubelet(binaries)
        };
        std::thread::scope(|scope| {
            let nodes = NODES.map(|member| (member, scope.spawn(move || start(member))));
            nodes.into_iter().try_for_each(|(member, node)| {
                let started = node.join().map_err(|_| anyhow::anyhow!("the thread that starts it panicked"))?;
                started.with_context(|| format!("start {}", member.name))
            })
        })
    }

    /// Gives the control plane its way to the pods: each node's addresses through the node itself.
    fn route_control_plane(&self, binaries: &Binaries) -> Result<()> {
        let kubectl = Kubectl::new(self, binaries)?;
        for node in &NODES {
            network::route_pods(&self.name, &CONTROL_PLANE, node, &kubectl.pod_cidrs(node)?)?;
        }
        Ok(())
    }

    /// A path in the cluster's directory.
    fn path(&self, name: &str) -> PathBuf {
        self.state.join(name)
    }

    /// Name of a member's cgroup in every hierarchy.
    fn cgroup(&self, member: &Member) -> String {
        namespace(&self.name, member)
    }

    fn control_plane(&self) -> Result<Place> {
        let cgroups = cgroups::directories(&self.cgroup(&CONTROL_PLANE))?;
        Ok(Place::network_namespace(&namespace(&self.name, &CONTROL_PLANE), cgroups))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_would_not_fit_a_namespace_is_refused() {
        for name in ["", "Dev", "a/b", "..", "a-name-that-is-too-long"] {
            assert!(Cluster::named(name).unwrap_err().to_string().contains("cluster name"), "{name}");
        }
        assert!(Cluster::named("dev-2").is_ok());
    }
}
