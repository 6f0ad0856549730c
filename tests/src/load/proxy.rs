// SPDX-License-Identifier: Apache-2.0

//! A node whose Services the real kube-proxy serves: what Weft's Services are compared with.
//!
//! Its pods are joined as the `ptp` plugin joins them: a routed veth pair each, no bridge. kube-proxy is of the version that
//! [`Binaries`] builds, watches the fake API server on the node's loopback, and has its own defaults but for what the testbed needs.

use std::{
    cell::{Cell, RefCell},
    fs::{self, File},
    net::Ipv4Addr,
    path::PathBuf,
};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::bare::Machine;
use crate::{
    apiserver::ApiServer,
    bed::{Bed, Outside, connect},
    cluster::Binaries,
    process::{Outcome, Process},
    shell::Shell,
};

/// The pods of all such nodes.
const POD_CIDR: &str = "10.245.0.0/16";

/// Takes kube-proxy's tables away, of whichever mode, so that the next one starts from nothing.
const FORGET: &str = "nft flush ruleset";

/// What kube-proxy writes its rules with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ProxyMode {
    /// `nft`.
    Nftables,
    /// `iptables` of Debian, which is `iptables-nft`.
    Iptables,
}

impl ProxyMode {
    /// As in kube-proxy's configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
        }
    }
}

/// A node on the switch of a bed, with pods and kube-proxy.
pub struct ProxyNode {
    machine: Machine,
    number: u8,
    mode: ProxyMode,
    program: PathBuf,
    proxy: RefCell<Option<Process>>,
    pods: Cell<u8>,
}

impl ProxyNode {
    /// Makes node `number`, which `server` serves; kube-proxy does not run yet.
    ///
    /// # Errors
    /// Not root, or kube-proxy is not in the cache.
    pub fn new(bed: &Bed, number: u8, mode: ProxyMode, server: &ApiServer) -> Result<Self> {
        let program = Binaries::cached()?.path("kube-proxy")?;
        let machine = Machine::new(bed, &format!("proxy{number}"))?;
        connect(bed.switch(), machine.namespace(), machine.namespace().name())?;
        let node = Self { machine, number, mode, program, proxy: RefCell::new(None), pods: Cell::new(1) };
        let script = format!(
            "set -e
             echo 1 >/proc/sys/net/ipv4/ip_forward
             ip address add {}/24 dev eth0
             ip link set eth0 up
             ip route add default via {}",
            node.v4(),
            Outside::GATEWAY_V4
        );
        node.sh(&script)?.ok().with_context(|| format!("set up {}", node.name()))?;
        server.listen(node.machine.namespace())?;
        for (name, text) in [("kubeconfig", kubeconfig()), ("kube-proxy.yaml", node.config())] {
            let path = node.machine.namespace().path(format!("/run/{name}"));
            fs::write(&path, text.to_string()).with_context(|| format!("write {}", path.display()))?;
        }
        Ok(node)
    }

    /// Its name in the API.
    #[must_use]
    pub fn name(&self) -> &str {
        self.machine.namespace().name()
    }

    /// Its address on the switch.
    #[must_use]
    pub fn v4(&self) -> Ipv4Addr {
        Ipv4Addr::new(192, 168, 119, 100 + self.number)
    }

    /// Its Node object.
    #[must_use]
    pub fn object(&self) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": self.name(), "uid": self.name(), "labels": {"kubernetes.io/hostname": self.name()}},
            "spec": {"podCIDR": self.pods_of(0), "podCIDRs": [self.pods_of(0)]},
            "status": {"addresses": [{"type": "InternalIP", "address": self.v4().to_string()}]},
        })
    }

    fn pods_of(&self, host: u8) -> String {
        format!("10.245.{}.{host}/24", self.number)
    }

    fn config(&self) -> Value {
        json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
            "mode": self.mode.name(), "hostnameOverride": self.name(), "clusterCIDR": POD_CIDR,
            "clientConnection": {"kubeconfig": "/run/kubeconfig", "contentType": "application/json"},
            // The machine's connection tracking limits belong to the machine, not to a node on it.
            "conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        })
    }

    /// Makes a pod, whose device has this MTU.
    ///
    /// # Errors
    /// A link could not be made.
    pub fn pod(&self, bed: &Bed, mtu: u32) -> Result<ProxyPod> {
        let place = self.pods.get() + 1;
        self.pods.set(place);
        let (port, gateway) = (format!("pod{place}"), Ipv4Addr::new(10, 245, self.number, 1));
        let pod = ProxyPod { machine: Machine::new(bed, &port)?, address: Ipv4Addr::new(10, 245, self.number, place) };
        self.machine.wire(&port, &pod.machine, mtu)?;
        let node = format!(
            "set -e
             ip link set {port} up
             ip address add {gateway}/32 dev {port}
             ip route add {}/32 dev {port}",
            pod.address
        );
        self.sh(&node)?.ok().with_context(|| format!("set up {port} of {}", self.name()))?;
        let inside = format!(
            "set -e
             ip address add {}/32 dev eth0
             ip link set eth0 up
             ip route add {gateway} dev eth0 scope link
             ip route add default via {gateway}",
            pod.address
        );
        pod.sh(&inside)?.ok().with_context(|| format!("set up {port}"))?;
        Ok(pod)
    }

    /// Routes the pods of another node there.
    ///
    /// # Errors
    /// The node does not answer.
    pub fn route_to(&self, other: &Self) -> Result<()> {
        let script = format!("ip route add 10.245.{}.0/24 via {}", other.number, other.v4());
        self.sh(&script)?.ok().map(drop).context("route pods")
    }

    /// Starts kube-proxy.
    ///
    /// # Errors
    /// It could not be started.
    pub fn start_proxy(&self) -> Result<()> {
        let log = File::create(self.machine.namespace().path("/run/kube-proxy.log"))?;
        let errors = log.try_clone()?;
        let proxy = self.machine.namespace().start("kube-proxy", |command| {
            command.arg(&self.program).args(["--config", "/run/kube-proxy.yaml", "--v", "2"]);
            command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").stdout(log).stderr(errors);
        })?;
        *self.proxy.borrow_mut() = Some(proxy);
        Ok(())
    }

    /// Kills kube-proxy and takes all of its rules away.
    ///
    /// # Errors
    /// It does not run, or does not end.
    pub fn forget(&self) -> Result<()> {
        self.proxy.borrow_mut().take().context("kube-proxy does not run")?.stop(Signal::SIGKILL)?;
        self.sh(FORGET)?.ok().map(drop).context("take kube-proxy's rules away")
    }

    /// Whether kube-proxy has said that its IPv4 rules of so many Service ports are written.
    #[must_use]
    pub fn has_written(&self, ports: usize) -> bool {
        has_written(&self.whole_log(), ports)
    }

    /// Forgets all connections of the node: those that somebody asked for before there were rules would be kept without them.
    ///
    /// # Errors
    /// There is no `conntrack`.
    pub fn forget_connections(&self) -> Result<()> {
        self.sh("conntrack -F")?.ok().map(drop).context("forget connections")
    }

    fn whole_log(&self) -> String {
        fs::read_to_string(self.machine.namespace().path("/run/kube-proxy.log")).unwrap_or_default()
    }

    /// The last lines of kube-proxy's log.
    #[must_use]
    pub fn log(&self) -> String {
        let log = self.whole_log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

/// Whether this log of kube-proxy, at verbosity 2, tells the end of a sync of so many Service ports.
fn has_written(log: &str, ports: usize) -> bool {
    let all = format!("numServices={ports} ");
    let of_v4 = |line: &&str| line.contains("ipFamily=\"IPv4\"");
    let rest = log.lines().filter(of_v4).skip_while(|line| !line.contains(&all));
    // The end of a sync that has failed is told as well.
    let mut has_failed = false;
    rest.skip(1).any(|line| {
        has_failed |= line.contains("Sync failed");
        let has_ended = line.contains("SyncProxyRules complete");
        let is_written = has_ended && !has_failed;
        has_failed &= !has_ended;
        is_written
    })
}

fn kubeconfig() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "fake",
        "clusters": [{"name": "fake", "cluster": {"server": "http://127.0.0.1:6443"}}],
        "users": [{"name": "fake", "user": {"token": "fake"}}],
        "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake"}}],
    })
}

impl Shell for ProxyNode {
    fn label(&self) -> String {
        self.name().to_owned()
    }

    fn folder(&self) -> String {
        "/run".to_owned()
    }

    fn sh(&self, script: &str) -> Result<Outcome> {
        self.machine.sh(script)
    }
}

/// A pod of such a node.
pub struct ProxyPod {
    machine: Machine,
    address: Ipv4Addr,
}

impl ProxyPod {
    /// Its address.
    #[must_use]
    pub fn v4(&self) -> Ipv4Addr {
        self.address
    }

    /// Its network namespace, as this machine reaches it.
    #[must_use]
    pub fn network(&self) -> PathBuf {
        self.machine.namespace().proc("ns/net")
    }
}

impl Shell for ProxyPod {
    fn label(&self) -> String {
        self.machine.label()
    }

    fn folder(&self) -> String {
        self.machine.folder()
    }

    fn sh(&self, script: &str) -> Result<Outcome> {
        self.machine.sh(script)
    }
}

#[cfg(test)]
mod tests {
    use super::has_written;

    #[test]
    fn the_log_tells_what_is_written() {
        let begun =
            "proxier.go:1712] \"Reloading service nftables data\" ipFamily=\"IPv4\" numServices=20 numEndpoints=40\n";
        let other = "proxier.go:1088] \"SyncProxyRules complete\" ipFamily=\"IPv6\" elapsed=\"1ms\"\n";
        let ended = "proxier.go:1088] \"SyncProxyRules complete\" ipFamily=\"IPv4\" elapsed=\"1ms\"\n";
        assert!(!has_written(&[ended, begun, other].concat(), 20));
        assert!(has_written(&[begun, other, ended].concat(), 20));
        assert!(!has_written(&[begun, ended].concat(), 2));
        let failed = "proxier.go:1100] \"Sync failed\" ipFamily=\"IPv4\" retryingTime=\"30s\"\n";
        assert!(!has_written(&[begun, failed, ended].concat(), 20));
        assert!(has_written(&[begun, failed, ended, begun, ended].concat(), 20));
    }
}
