// SPDX-License-Identifier: Apache-2.0

//! kubectl as the cluster's administrator, run in the control plane's network namespace.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::Cluster;
use super::binaries::Binaries;
use super::command::{output, output_with_input, run, wait_until};
use super::network::Member;

/// kubectl bound to one cluster.
pub(crate) struct Kubectl<'a> {
    cluster: &'a Cluster,
    program: std::path::PathBuf,
    place: super::place::Place,
}

impl<'a> Kubectl<'a> {
    /// Binds kubectl to `cluster`.
    ///
    /// # Errors
    /// kubectl is not built.
    pub(crate) fn new(cluster: &'a Cluster, binaries: &Binaries) -> Result<Self> {
        Ok(Self { cluster, program: binaries.path("kubectl")?, place: cluster.control_plane()? })
    }

    /// Returns a kubectl command that lacks its arguments.
    pub(crate) fn command(&self) -> Command {
        let mut kubectl = self.place.command(&self.program);
        kubectl.arg("--kubeconfig").arg(self.cluster.path("admin.kubeconfig"));
        kubectl
    }

    /// Applies a manifest.
    ///
    /// # Errors
    /// The API server refuses an object.
    pub(crate) fn apply(&self, manifest: &str) -> Result<()> {
        output_with_input(self.command().args(["apply", "--filename", "-"]), manifest.as_bytes()).map(drop)
    }

    /// Deletes the objects of a manifest, and waits until they are gone.
    ///
    /// # Errors
    /// The API server refuses it.
    pub(crate) fn delete(&self, manifest: &str) -> Result<()> {
        let mut command = self.command();
        command.args(["delete", "--ignore-not-found", "--filename", "-"]);
        output_with_input(&mut command, manifest.as_bytes()).map(drop)
    }

    /// Deletes a workload of `kube-system`, and waits until its pods are gone.
    ///
    /// # Errors
    /// The API server refuses it.
    pub(crate) fn delete_workload(&self, workload: &str) -> Result<()> {
        run(self.command().args(["--namespace", "kube-system", "delete", "--cascade=foreground", workload]))
    }

    /// Whether a workload of `kube-system` exists.
    ///
    /// # Errors
    /// The API server does not answer.
    pub(crate) fn exists(&self, workload: &str) -> Result<bool> {
        let mut command = self.command();
        command.args(["--namespace", "kube-system", "get", workload, "--ignore-not-found", "-o", "name"]);
        Ok(!output(&mut command)?.trim().is_empty())
    }

    /// Replaces the pods of a workload of `kube-system` by new ones.
    ///
    /// # Errors
    /// The API server refuses it.
    pub(crate) fn restart(&self, workload: &str) -> Result<()> {
        run(self.command().args(["--namespace", "kube-system", "rollout", "restart", workload]))
    }

    /// Pod address ranges of a node once the controller manager has given it some.
    ///
    /// # Errors
    /// The node does not register in time.
    pub(crate) fn pod_cidrs(&self, node: &Member) -> Result<Vec<String>> {
        wait_until(&format!("the pod addresses of {}", node.name), Duration::from_secs(60), || {
            self.cluster.daemons.ensure_running(&format!("{}-kubelet", node.name))?;
            self.cluster.daemons.ensure_running("kube-controller-manager")?;
            let path = "jsonpath={.spec.podCIDRs[*]}";
            let cidrs = output(self.command().args(["get", "node", node.name, "--ignore-not-found", "-o", path]))?;
            let cidrs: Vec<_> = cidrs.split_whitespace().map(str::to_owned).collect();
            Ok((cidrs.len() == 2).then_some(cidrs))
        })
    }

    /// Waits until every node is Ready.
    ///
    /// # Errors
    /// One is not in time: the error holds what kubectl knows about the nodes.
    pub(crate) fn wait_nodes_ready(&self) -> Result<()> {
        let waited = run(self.command().args(["wait", "node", "--all", "--for=condition=Ready", "--timeout=120s"]));
        waited.with_context(|| self.state())
    }

    /// Waits until a workload of `kube-system` (`deployment/NAME`, `daemonset/NAME`) is rolled out.
    ///
    /// # Errors
    /// It is not in time: the error holds the state of nodes and pods.
    pub(crate) fn wait_rolled_out(&self, workload: &str) -> Result<()> {
        let mut command = self.command();
        command.args(["--namespace", "kube-system", "rollout", "status", workload, "--timeout=120s"]);
        run(&mut command).with_context(|| self.state())
    }

    /// Why nodes and pods of `kube-system` are not ready, for an error message.
    fn state(&self) -> String {
        let ready = "jsonpath={range .items[*]}{.metadata.name}: {.status.conditions[?(@.type==\"Ready\")].message}{\"\\n\"}{end}";
        let logs = [
            "-n",
            "kube-system",
            "logs",
            "-l",
            "app.kubernetes.io/name=weft",
            "--all-containers",
            "--prefix",
            "--tail=20",
        ];
        let questions: [&[&str]; 5] = [
            &["get", "nodes", "-o", "wide"],
            &["get", "nodes", "-o", ready],
            &["get", "pods", "-A", "-o", "wide"],
            &["get", "events", "-A", "--field-selector", "type=Warning"],
            &logs,
        ];
        questions.map(|question| self.listing(question)).join("\n")
    }

    /// What kubectl prints, for an error message.
    fn listing(&self, arguments: &[&str]) -> String {
        output(self.command().args(arguments)).unwrap_or_else(|error| error.to_string())
    }
}
