// SPDX-License-Identifier: Apache-2.0

//! A vhost-user port on a node of the cluster: its device is not the agent's pod's.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft_api::VmReport;

use super::Cluster;
use super::binaries::Binaries;
use super::command::{output, output_with_input, run, wait_until};
use super::kubectl::Kubectl;
use super::network::{Member, NODES};
use super::node::Node;

const PATIENCE: Duration = Duration::from_secs(120);
/// The attachment's `CNI_CONTAINERID`.
const CONTAINER: &str = "weft-testbed-guest";

impl Cluster {
    /// Plugs a vhost-user port in on a node, as a runtime does, replaces the agent's pod, and unplugs it: the device stays the
    /// same process, and goes at DEL with everything of it.
    ///
    /// # Errors
    /// It does not, or the cluster does not answer.
    pub fn device_outlives_agent(&self, binaries: &Binaries) -> Result<()> {
        self.ensure_up()?;
        let [member, ..] = NODES;
        let port = Port { node: Node::open(self, member)?, kubectl: Kubectl::new(self, binaries)?, member };
        let tap = port.add()?;
        let looked = port.survives_a_new_pod(&tap);
        // Also after a failure.
        let removed = port.call("DEL").map(drop);
        let pid = looked?;
        removed?;
        port.is_gone(pid)
    }
}

/// A vhost-user port of a node.
struct Port<'a> {
    node: Node<'a>,
    kubectl: Kubectl<'a>,
    member: Member,
}

impl Port<'_> {
    /// ADD; returns the tap's name.
    fn add(&self) -> Result<String> {
        let result: Value = serde_json::from_str(&self.call("ADD")?).context("read ADD's result")?;
        let name = result["interfaces"][0]["name"].as_str();
        name.map(str::to_owned).with_context(|| format!("ADD's result names no tap: {result}"))
    }

    fn call(&self, verb: &str) -> Result<String> {
        let config = r#"{"cniVersion": "1.1.0", "name": "weft-testbed", "type": "weft-cni", "port": "vhost-user"}"#;
        let mut plugin = self.node.command("/opt/cni/bin/weft-cni");
        plugin.env("CNI_COMMAND", verb).env("CNI_CONTAINERID", CONTAINER).env("CNI_IFNAME", "eth0");
        plugin.env("CNI_NETNS", "").env("CNI_PATH", "/opt/cni/bin");
        output_with_input(&mut plugin, config.as_bytes()).with_context(|| format!("CNI {verb}"))
    }

    /// Returns the device's process.
    fn survives_a_new_pod(&self, tap: &str) -> Result<u32> {
        let pid = self.device(tap)?;
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).context("read the device's control groups")?;
        let own = format!("/weft/vhost-{tap}");
        let strange: Vec<_> = groups.lines().filter(|line| !line.ends_with(&own)).collect();
        ensure!(strange.is_empty(), "the device is in control groups that are not its own: {strange:?}");
        let old = self.pod()?.context("no agent runs on the node")?;
        run(self.system().args(["delete", &old]))?;
        wait_until("another pod of the agent", PATIENCE, || Ok(self.pod()?.filter(|pod| *pod != old)))?;
        self.kubectl.wait_rolled_out("daemonset/weft-agent")?;
        let now = self.device(tap)?;
        ensure!(now == pid, "the device was process {pid} and is {now} since the agent's pod was replaced");
        Ok(pid)
    }

    /// The process of the device on `tap`, once the agent says that it is ready.
    fn device(&self, tap: &str) -> Result<u32> {
        wait_until(&format!("the device on {tap}"), PATIENCE, || {
            let Some(pod) = self.pod()? else { return Ok(None) };
            let Ok(text) =
                output(self.system().args(["exec", &pod, "--container=agent", "--", "weft", "vm", "-o", "json"]))
            else {
                return Ok(None);
            };
            let vms: Vec<VmReport> = serde_json::from_str(&text).with_context(|| format!("weft vm printed: {text}"))?;
            Ok(vms.into_iter().find(|vm| vm.ifname == tap && vm.state == "ready").and_then(|vm| vm.pid))
        })
    }

    /// The agent's pod on the node.
    fn pod(&self) -> Result<Option<String>> {
        let mut command = self.system();
        command.args(["get", "pods", "--selector=app.kubernetes.io/component=agent", "--output=name"]);
        command.arg(format!("--field-selector=spec.nodeName={}", self.member.name));
        Ok(output(&mut command)?.lines().next().map(str::to_owned))
    }

    fn system(&self) -> Command {
        let mut command = self.kubectl.command();
        command.arg("--namespace=kube-system");
        command
    }

    fn is_gone(&self, pid: u32) -> Result<()> {
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        ensure!(!line.contains("weft-vhost"), "after DEL the device still runs as process {pid}");
        let mut groups = self.node.command("find");
        groups.args(["/sys/fs/cgroup", "-maxdepth", "3", "-type", "d", "-path", "*/weft/vhost-*"]);
        let groups = output(&mut groups)?;
        ensure!(groups.trim().is_empty(), "after DEL these control groups are left: {groups}");
        Ok(())
    }
}
