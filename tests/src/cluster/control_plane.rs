// SPDX-License-Identifier: Apache-2.0

//! etcd, the API server, the controller manager and the scheduler, in a network namespace of their own.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::binaries::Binaries;
use super::command::{output, wait_until};
use super::kubectl::Kubectl;
use super::network::CONTROL_PLANE;
use super::template::render;
use super::{Cluster, POD_CIDRS, SERVICE_CIDRS, cgroups, pki};

/// The API server's address for everybody.
pub const ENDPOINT: &str = "https://172.30.0.1:6443";

/// Starts everything and waits until the API server is ready.
///
/// # Errors
/// A program ends, or the API server is not ready in time.
pub(crate) fn start(cluster: &Cluster, binaries: &Binaries) -> Result<()> {
    pki::create(&cluster.path("pki"))?;
    for user in &pki::USERS {
        write_kubeconfig(cluster, user.file)?;
    }
    cgroups::create(&cluster.cgroup(&CONTROL_PLANE))?;
    start_etcd(cluster, binaries)?;
    start_api_server(cluster, binaries)?;
    wait_ready(cluster, binaries)?;
    start_controller_manager(cluster, binaries)?;
    start_scheduler(cluster, binaries)
}

/// Writes the kubeconfig of one user and returns its path.
///
/// # Errors
/// The user has no token, or the file cannot be written.
pub(crate) fn write_kubeconfig(cluster: &Cluster, user: &str) -> Result<PathBuf> {
    let token = cluster.path(&format!("pki/{user}.token"));
    let token = fs::read_to_string(&token).with_context(|| format!("read {}", token.display()))?;
    let authority = cluster.path("pki/ca.crt").to_string_lossy().into_owned();
    let values = [("SERVER", ENDPOINT.to_owned()), ("CA", authority), ("USER", user.to_owned()), ("TOKEN", token)];
    let path = cluster.path(&format!("{user}.kubeconfig"));
    fs::write(&path, render(include_str!("../../cluster/kubeconfig.yaml"), &values)?)
        .with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

fn start_etcd(cluster: &Cluster, binaries: &Binaries) -> Result<()> {
    let mut etcd = program(cluster, binaries, "etcd")?;
    // Durability across a power loss is of no use to a cluster that lives as long as its directory below /run.
    etcd.arg("--unsafe-no-fsync").arg("--data-dir").arg(cluster.path("etcd"));
    // By address: its defaults are names, which a machine without /etc/hosts cannot resolve.
    let (client, peer) = ("http://127.0.0.1:2379", "http://127.0.0.1:2380");
    etcd.args([format!("--listen-client-urls={client}"), format!("--advertise-client-urls={client}")]);
    etcd.args([format!("--listen-peer-urls={peer}"), format!("--initial-advertise-peer-urls={peer}")]);
    etcd.arg(format!("--initial-cluster=default={peer}"));
    cluster.daemons.start("etcd", &mut etcd).map(drop)
}

fn start_api_server(cluster: &Cluster, binaries: &Binaries) -> Result<()> {
    let mut server = program(cluster, binaries, "kube-apiserver")?;
    server.args([
        "--etcd-servers=http://127.0.0.1:2379",
        "--secure-port=6443",
        "--allow-privileged=true",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--kubelet-preferred-address-types=InternalIP",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        "--profiling=false",
    ]);
    server.arg(format!("--advertise-address={}", CONTROL_PLANE.v4));
    server.arg(format!("--service-cluster-ip-range={SERVICE_CIDRS}"));
    for (flag, file) in [
        ("token-auth-file", "tokens.csv"),
        ("client-ca-file", "ca.crt"),
        ("tls-cert-file", "apiserver.crt"),
        ("tls-private-key-file", "apiserver.key"),
        ("kubelet-client-certificate", "kubelet-client.crt"),
        ("kubelet-client-key", "kubelet-client.key"),
        ("service-account-key-file", "service-account.key"),
        ("service-account-signing-key-file", "service-account.key"),
    ] {
        server.arg(format!("--{flag}={}", cluster.path("pki").join(file).display()));
    }
    cluster.daemons.start("kube-apiserver", &mut server).map(drop)
}

fn start_controller_manager(cluster: &Cluster, binaries: &Binaries) -> Result<()> {
    let mut manager = program(cluster, binaries, "kube-controller-manager")?;
    manager.args([
        "--leader-elect=false",
        "--use-service-account-credentials=true",
        "--allocate-node-cidrs=true",
        "--node-cidr-mask-size-ipv4=24",
        "--node-cidr-mask-size-ipv6=64",
    ]);
    manager.arg(format!("--cluster-cidr={POD_CIDRS}")).arg(format!("--service-cluster-ip-range={SERVICE_CIDRS}"));
    manager.arg("--kubeconfig").arg(cluster.path("controller-manager.kubeconfig"));
    for (flag, file) in [
        ("root-ca-file", "ca.crt"),
        ("cluster-signing-cert-file", "ca.crt"),
        ("cluster-signing-key-file", "ca.key"),
        ("service-account-private-key-file", "service-account.key"),
    ] {
        manager.arg(format!("--{flag}={}", cluster.path("pki").join(file).display()));
    }
    cluster.daemons.start("kube-controller-manager", &mut manager).map(drop)
}

fn start_scheduler(cluster: &Cluster, binaries: &Binaries) -> Result<()> {
    let mut scheduler = program(cluster, binaries, "kube-scheduler")?;
    scheduler.arg("--leader-elect=false").arg("--kubeconfig").arg(cluster.path("scheduler.kubeconfig"));
    cluster.daemons.start("kube-scheduler", &mut scheduler).map(drop)
}

fn wait_ready(cluster: &Cluster, binaries: &Binaries) -> Result<()> {
    let kubectl = Kubectl::new(cluster, binaries)?;
    wait_until("the API server", Duration::from_secs(60), || {
        cluster.daemons.ensure_running("etcd")?;
        cluster.daemons.ensure_running("kube-apiserver")?;
        Ok(output(kubectl.command().args(["get", "--raw", "/readyz"])).ok())
    })?;
    Ok(())
}

fn program(cluster: &Cluster, binaries: &Binaries, name: &str) -> Result<Command> {
    Ok(cluster.control_plane()?.command(binaries.path(name)?))
}
