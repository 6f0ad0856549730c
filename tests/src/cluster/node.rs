// SPDX-License-Identifier: Apache-2.0

//! A node: network, mount, host name and cgroup namespaces with containerd and kubelet in them.
//!
//! The namespaces are held by an anchor process. A node has its own `/run`, its own BPF file system and cgroup root, and
//! overlays on `/etc`, `/opt` and `/var`, so that what it writes there stays its own and goes away with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::binaries::Binaries;
use super::command::{output, run, wait_until};
use super::control_plane::write_kubeconfig;
use super::images::PAUSE_IMAGE;
use super::network::{Member, namespace};
use super::place::Place;
use super::template::render;
use super::{Cluster, DNS_ADDRESS, cgroups};

/// The system directories that a node may change without changing the machine.
const OVERLAID: [&str; 3] = ["etc", "opt", "var"];
/// Directories that must lie on a plain file system: container snapshots are overlays themselves.
const ON_DISK: [&str; 2] = ["var/lib/containerd", "var/lib/kubelet"];
/// Where a node's containerd listens, inside of the node.
const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";

/// A node of a running or starting cluster.
pub(crate) struct Node<'a> {
    cluster: &'a Cluster,
    pub(crate) member: Member,
    place: Place,
}

impl<'a> Node<'a> {
    /// Makes the node's namespaces, mounts and cgroups.
    ///
    /// # Errors
    /// The kernel refuses one of them.
    pub(crate) fn create(cluster: &'a Cluster, member: Member) -> Result<Self> {
        let cgroups = cgroups::create(&cluster.cgroup(&member))?;
        let anchor = start_anchor(cluster, &member, cgroups)?;
        cgroups::divide(&cluster.cgroup(&member), anchor)?;
        let node = Self::open(cluster, member)?;
        node.mount_all().with_context(|| format!("mount the file systems of {}", member.name))?;
        node.run("hostname", &[member.name])?;
        Ok(node)
    }

    /// Returns the running node `member`.
    ///
    /// # Errors
    /// It does not run.
    pub(crate) fn open(cluster: &'a Cluster, member: Member) -> Result<Self> {
        let anchor = cluster.daemons.running(&anchor_name(&member))?;
        let anchor = anchor.with_context(|| format!("{} does not run", member.name))?;
        let place = Place::node(anchor, cgroups::directories(&cluster.cgroup(&member))?);
        Ok(Self { cluster, member, place })
    }

    /// Installs the base CNI plugins and starts containerd.
    ///
    /// # Errors
    /// It ends, or does not answer in time.
    pub(crate) fn start_containerd(&self, binaries: &Binaries) -> Result<()> {
        self.install_cni_plugin(binaries, "loopback")?;
        let runc = binaries.path("runc")?;
        let values = [("RUNC", runc.to_string_lossy().into_owned()), ("PAUSE_IMAGE", PAUSE_IMAGE.to_owned())];
        let config = self.write("containerd.toml", &render(include_str!("../../cluster/containerd.toml"), &values)?)?;
        let mut containerd = self.place.command(binaries.path("containerd")?);
        containerd.arg("--config").arg(&config).env("PATH", binaries.search_path());
        let name = format!("{}-containerd", self.member.name);
        self.cluster.daemons.start(&name, &mut containerd)?;
        wait_until(&format!("containerd of {}", self.member.name), Duration::from_secs(30), || {
            self.cluster.daemons.ensure_running(&name)?;
            Ok(output(self.ctr(binaries)?.arg("version")).ok())
        })?;
        Ok(())
    }

    /// Starts the kubelet, which registers the node.
    ///
    /// # Errors
    /// It cannot be started.
    pub(crate) fn start_kubelet(&self, binaries: &Binaries) -> Result<()> {
        let resolver = self.write("resolv.conf", "")?;
        let values = [
            ("CLIENT_CA", self.cluster.path("pki/ca.crt").to_string_lossy().into_owned()),
            ("DNS_ADDRESS", DNS_ADDRESS.to_owned()),
            ("RESOLVER", resolver.to_string_lossy().into_owned()),
            ("SOCKET", format!("unix://{CONTAINERD_SOCKET}")),
        ];
        let config = self.write("kubelet.yaml", &render(include_str!("../../cluster/kubelet.yaml"), &values)?)?;
        let kubeconfig = write_kubeconfig(self.cluster, self.member.name)?;
        let mut kubelet = self.place.command(binaries.path("kubelet")?);
        kubelet.arg("--config").arg(&config).arg("--kubeconfig").arg(&kubeconfig);
        kubelet.arg(format!("--node-ip={},{}", self.member.v4, self.member.v6));
        kubelet.env("PATH", binaries.search_path());
        self.cluster.daemons.start(&format!("{}-kubelet", self.member.name), &mut kubelet)?;
        Ok(())
    }

    /// Puts one of the plain CNI plugins where the container runtime looks for them.
    ///
    /// # Errors
    /// It is not built, or cannot be copied.
    pub(crate) fn install_cni_plugin(&self, binaries: &Binaries, name: &str) -> Result<()> {
        self.run("mkdir", &["-p", "/opt/cni/bin"])?;
        self.run("cp", &[&binaries.path(name)?.to_string_lossy(), "/opt/cni/bin/"])
    }

    /// Imports an image archive and checks that every reference in `expected` is there afterwards.
    ///
    /// # Errors
    /// The import fails, or a reference is missing.
    pub(crate) fn import_images(&self, binaries: &Binaries, archive: &Path, expected: &[String]) -> Result<()> {
        run(self.ctr(binaries)?.args(["images", "import"]).arg(archive))?;
        let present = output(self.ctr(binaries)?.args(["images", "list", "--quiet"]))?;
        for reference in expected {
            let found = present.lines().any(|line| line == reference);
            ensure!(
                found,
                "image {reference} is not on {} after the import of {}",
                self.member.name,
                archive.display()
            );
        }
        Ok(())
    }

    /// Writes a file into the node's directory on the machine and returns its path, the same inside of the node.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn write(&self, file: &str, content: &str) -> Result<PathBuf> {
        let path = self.cluster.path(self.member.name).join(file);
        fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }

    /// Runs one of the machine's tools inside of the node.
    ///
    /// # Errors
    /// It fails.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> Result<()> {
        run(self.place.command(program).args(arguments))
    }

    /// Returns a command that runs inside of the node.
    pub(crate) fn command(&self, program: impl AsRef<Path>) -> Command {
        self.place.command(program)
    }

    fn ctr(&self, binaries: &Binaries) -> Result<Command> {
        let mut ctr = self.place.command(binaries.path("ctr")?);
        ctr.args(["--address", CONTAINERD_SOCKET, "--namespace", "k8s.io"]);
        Ok(ctr)
    }

    fn mount_all(&self) -> Result<()> {
        self.mount(&["-t", "sysfs", "sysfs", "/sys"])?;
        self.mount_cgroups()?;
        self.mount(&["-t", "bpf", "bpf", "/sys/fs/bpf"])?;
        for directory in OVERLAID {
            self.mount_overlay(directory)?;
        }
        for directory in ON_DISK {
            self.bind_on_disk(directory)?;
        }
        self.mount_run()?;
        // Pods may ask for mount propagation, which needs a shared mount to start from.
        self.mount(&["--make-rshared", "/"])
    }

    /// Mounts every hierarchy again: seen from the node's cgroup namespace its root is the node's own cgroup.
    fn mount_cgroups(&self) -> Result<()> {
        self.mount(&["-t", "tmpfs", "-o", "mode=755", "tmpfs", "/sys/fs/cgroup"])?;
        for hierarchy in cgroups::hierarchies()? {
            let target = hierarchy.mount_point.to_string_lossy();
            self.run("mkdir", &["-p", &target])?;
            let kind = hierarchy.file_system.as_str();
            match hierarchy.options.as_str() {
                "" => self.mount(&["-t", kind, kind, &target])?,
                options => self.mount(&["-t", kind, "-o", options, kind, &target])?,
            }
        }
        Ok(())
    }

    fn mount_overlay(&self, directory: &str) -> Result<()> {
        let base = self.cluster.path(self.member.name);
        let (upper, work) = (base.join("upper").join(directory), base.join("work").join(directory));
        for path in [&upper, &work] {
            fs::create_dir_all(path).with_context(|| format!("create {}", path.display()))?;
        }
        let options = format!("lowerdir=/{directory},upperdir={},workdir={}", upper.display(), work.display());
        self.mount(&["-t", "overlay", "-o", &options, "overlay", &format!("/{directory}")])
    }

    fn bind_on_disk(&self, directory: &str) -> Result<()> {
        let source = self.cluster.path(self.member.name).join("disk").join(directory);
        fs::create_dir_all(&source).with_context(|| format!("create {}", source.display()))?;
        let target = format!("/{directory}");
        self.run("mkdir", &["-p", &target])?;
        self.mount(&["--bind", &source.to_string_lossy(), &target])
    }

    /// Gives the node an empty `/run` in which only the cluster's own directory of the machine shows.
    fn mount_run(&self) -> Result<()> {
        let state = self.cluster.path("");
        let inside = format!("/mnt/{}", state.strip_prefix("/run").context("the state is not below /run")?.display());
        self.mount(&["-t", "tmpfs", "-o", "mode=755", "tmpfs", "/mnt"])?;
        self.run("mkdir", &["-p", &inside])?;
        self.mount(&["--bind", &state.to_string_lossy(), &inside])?;
        self.mount(&["--move", "/mnt", "/run"])
    }

    fn mount(&self, arguments: &[&str]) -> Result<()> {
        // The moved /run has no mount table of util-linux's own to keep up.
        self.run("mount", &[&["--no-mtab"], arguments].concat())
    }
}

fn anchor_name(member: &Member) -> String {
    format!("{}-anchor", member.name)
}

/// Starts the process that holds a node's namespaces and waits until it has made them.
fn start_anchor(cluster: &Cluster, member: &Member, cgroups: Vec<PathBuf>) -> Result<i32> {
    let outer = Place::network_namespace(&namespace(&cluster.name, member), cgroups);
    let mut unshare = outer.command("unshare");
    unshare.args(["--mount", "--uts", "--cgroup", "--propagation", "private", "sleep", "infinity"]);
    let anchor = cluster.daemons.start(&anchor_name(member), &mut unshare)?;
    wait_until(&format!("the namespaces of {}", member.name), Duration::from_secs(5), || {
        cluster.daemons.ensure_running(&anchor_name(member))?;
        let name = fs::read_to_string(format!("/proc/{anchor}/comm")).unwrap_or_default();
        Ok((name.trim() == "sleep").then_some(()))
    })?;
    Ok(anchor)
}
