// SPDX-License-Identifier: Apache-2.0
//! The agent from start to end.
//!
//! | Step | Where |
//! |---|---|
//! | listen, so that clients hear why the agent is not ready | [`crate::serve`] |
//! | watch the cluster; learn this node's pod CIDRs | [`crate::watch`] |
//! | devices and addresses | [`crate::device`] |
//! | maps and programs, adopted where they are there already | [`weft_dataplane`] |
//! | attachments of an earlier run | [`crate::attachment`] |
//! | turns: requests and changes, one pass for all that wait | `engine`, `node`, `port` |
//!
//! SIGTERM and SIGINT end the process and nothing else: maps, links and devices stay, and packets go on.
//! [`cleanup::run`] is what removes them.
//!
//! All threads stay in the network namespace that the process was started in.

pub mod cleanup;
mod engine;
pub mod install;
mod memory;
mod node;
mod port;

use std::{fs, path::PathBuf, sync::Arc};

use anyhow::{Context as _, Result, bail};
use ipnet::IpNet;
use nix::fcntl::{Flock, FlockArg};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    task::JoinSet,
};
use weft_dataplane::{Dataplane, Maps, Options};

use self::{
    engine::Engine,
    memory::{Memory, NodeMemory},
    node::{Node, State},
};
use crate::{
    apply::Applier,
    attachment::{Attachments, Settings},
    config::{Config, Source},
    device::{self, DeviceConfig, Limits, Observation},
    file,
    model::{Mode, ObjectKey, Snapshot},
    serve::{Command, Shared, View, api, flows, health},
    vhost::{self, Cgroups, Devices},
    watch::{self as cluster, ApiServer},
};

/// Runs the agent until it is told to end.
///
/// # Errors
/// What keeps it from starting, each naming its object; once it serves, nothing ends it but a signal.
pub async fn run(config: Config) -> Result<()> {
    let _lock = lock(&config)?;
    let (shared, commands) = Shared::new(first_view(&config));
    let mut tasks = JoinSet::new();
    serve(&config, &shared, &mut tasks).await?;
    let snapshots = cluster::start(source(&config), &config.node_name);
    let config = Arc::new(config);
    let work = start(config.clone(), shared, commands, snapshots);
    tokio::select! {
        result = work => result?,
        signal = ended() => tracing::info!(signal = signal?, "ending; the dataplane goes on"),
    }
    // A socket without a listener would only puzzle clients.
    drop(fs::remove_file(&config.socket));
    Ok(())
}

/// One agent at a time.
fn lock(config: &Config) -> Result<Flock<fs::File>> {
    let path = config.run_dir.join("agent.lock");
    fs::create_dir_all(&config.run_dir)
        .with_context(|| format!("runDir: cannot create {}", config.run_dir.display()))?;
    let file = fs::File::create(&path).with_context(|| format!("runDir: cannot create {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|(_, error)| anyhow::Error::from(error))
        .with_context(|| format!("cannot lock {}: another weft-agent runs on this node; end it first", path.display()))
}

fn first_view(config: &Config) -> View {
    let mode = match config.mode {
        Mode::Vxlan => "vxlan",
        Mode::Native => "native",
    };
    View {
        node: config.node_name.clone(),
        mode: mode.to_owned(),
        pod_cidrs: config.pod_cidrs.clone(),
        source: Some(node::source_state(config, &Snapshot::default())),
        not_ready: Some("starting".to_owned()),
        ..View::default()
    }
}

async fn serve(config: &Config, shared: &Arc<Shared>, tasks: &mut JoinSet<()>) -> Result<()> {
    let api = api::listen(&config.socket)?;
    let health = health::listen(config.health_address).await?;
    tasks.spawn(api::serve(api, shared.clone()));
    tasks.spawn(health::serve(health, shared.clone()));
    Ok(())
}

fn source(config: &Config) -> cluster::Source {
    match &config.source {
        Source::Dir(path) => cluster::Source::Dir(path.clone()),
        Source::Kubernetes => cluster::Source::Kubernetes(ApiServer {
            server: config.api_server.clone(),
            kubeconfig: config.kubeconfig.clone(),
        }),
    }
}

async fn start(
    config: Arc<Config>,
    shared: Arc<Shared>,
    commands: mpsc::Receiver<Command>,
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
) -> Result<()> {
    let pod_cidrs = pod_cidrs(&config, &shared, &mut snapshots).await?;
    let mut device_config = device_config(&config, pod_cidrs);
    let mut observation = device::apply(&device_config).await.context("cannot prepare the node's devices")?;
    let dataplane = open(&config)?;
    device_config.limits = limits(&config, dataplane.maps());
    device_config.limits.put(&mut observation.facts.config);
    let attachments = open_attachments(&config, &device_config, &observation)?;
    let devices = Devices::new(vhost_binary(&config)?, vhost_folder(&config), Cgroups::find(), shared.devices.clone());
    let memory: Memory = memory::load(&memory::numbers_path(&config.run_dir));
    let applier = Applier::new(memory.digests.clone());
    let mut node = Node {
        config,
        device_config,
        observation,
        dataplane,
        attachments,
        devices,
        memory,
        applier,
        state: State::default(),
    };
    node.adopt().await?;
    shared.set_maps(node.maps().clone());
    let events = node.dataplane.events().context("cannot read flow events")?;
    let reader = tokio::spawn(flows::read(events, shared.clone()));
    node.publish(&shared, &snapshots.borrow());
    Engine::new(shared, commands, snapshots, node).run().await;
    reader.abort();
    bail!("the object source has ended; this is a bug of weft-agent")
}

/// Pod CIDRs of this node: configured, else those of its Node object, else those that it had before.
async fn pod_cidrs(
    config: &Config,
    shared: &Shared,
    snapshots: &mut watch::Receiver<Arc<Snapshot>>,
) -> Result<Vec<IpNet>> {
    if !config.pod_cidrs.is_empty() {
        return Ok(config.pod_cidrs.clone());
    }
    let path = memory::node_path(&config.state_dir);
    let before: NodeMemory = memory::load(&path);
    if !before.pod_cidrs.is_empty() {
        return Ok(before.pod_cidrs);
    }
    loop {
        let snapshot = snapshots.borrow_and_update().clone();
        let found = node_pod_cidrs(&snapshot, &config.node_name);
        if !found.is_empty() {
            fs::create_dir_all(&config.state_dir).context("stateDir: cannot create")?;
            file::save(&path, &NodeMemory { pod_cidrs: found.clone() })?;
            return Ok(found);
        }
        shared.publish(|view| {
            view.source = Some(node::source_state(config, &snapshot));
            view.not_ready = Some(no_pod_cidrs(config, &snapshot));
        });
        snapshots.changed().await.context("the object source has ended")?;
    }
}

fn no_pod_cidrs(config: &Config, snapshot: &Snapshot) -> String {
    let Config { node_name, source, .. } = config;
    match &snapshot.error {
        Some(error) => format!("{source} does not answer: {error}"),
        None if !snapshot.synced => format!("{source}: not synced yet"),
        None => format!(
            "the Node {node_name} has no spec.podCIDRs; set them there (kube-controller-manager: --allocate-node-cidrs), or \
             set podCIDRs in the agent's configuration"
        ),
    }
}

fn node_pod_cidrs(snapshot: &Snapshot, name: &str) -> Vec<IpNet> {
    let key = ObjectKey { namespace: String::new(), name: name.to_owned() };
    let spec = snapshot.nodes.get(&key).and_then(|node| node.spec.as_ref());
    let cidrs = spec.into_iter().flat_map(|spec| match &spec.pod_cidrs {
        Some(cidrs) if !cidrs.is_empty() => cidrs.clone(),
        _ => spec.pod_cidr.clone().into_iter().collect(),
    });
    cidrs.filter_map(|cidr| cidr.parse().ok()).collect()
}

fn device_config(config: &Config, pod_cidrs: Vec<IpNet>) -> DeviceConfig {
    DeviceConfig {
        node_name: config.node_name.clone(),
        mode: config.mode,
        uplink: config.uplink.clone(),
        node_addresses: config.node_addresses.clone(),
        pod_cidrs,
        service_cidrs: config.service_cidrs.clone(),
        vni: config.vni,
        vxlan_port: config.vxlan_port,
        mtu: config.mtu,
        masquerade_v4: config.masquerade.ipv4,
        masquerade_v6: config.masquerade.ipv6,
        masquerade_ports: config.masquerade_ports.map(|ports| ports.first..=ports.last),
        // Once the maps are there.
        limits: Limits::default(),
    }
}

/// By the sizes that the maps have, which may be those of an earlier configuration.
fn limits(config: &Config, maps: &Maps) -> Limits {
    let flows = [maps.flows4().capacity(), maps.flows6().capacity()];
    Limits::new(&config.port_limits, flows, maps.ports().capacity())
}

fn open(config: &Config) -> Result<Dataplane> {
    let options = Options { pin_dir: config.pin_dir.clone(), sizes: config.map_sizes };
    let dataplane = Dataplane::open(&options).context("cannot open the dataplane")?;
    let report = dataplane.report();
    let adopted = report.maps.iter().filter(|map| map.origin == weft_dataplane::Origin::Adopted).count();
    tracing::info!(maps = report.maps.len(), adopted, links = report.links.adopted.len(), "opened the dataplane");
    Ok(dataplane)
}

fn open_attachments(config: &Config, device_config: &DeviceConfig, observation: &Observation) -> Result<Attachments> {
    let settings =
        Settings { mtu: observation.pod_mtu, dns: config.dns.clone().into(), socket_dir: vhost_folder(config) };
    Ok(Attachments::open(&config.state_dir, &device_config.pod_cidrs, settings)?)
}

/// Where the files of the devices of vhost-user ports are.
fn vhost_folder(config: &Config) -> PathBuf {
    config.run_dir.join("vhost")
}

/// The binary of those devices: configured, else the one beside this executable.
fn vhost_binary(config: &Config) -> Result<PathBuf> {
    match &config.vhost_binary {
        Some(path) => Ok(path.clone()),
        None => Ok(std::env::current_exe()
            .context("cannot tell the path of this executable")?
            .with_file_name(vhost::BINARY)),
    }
}

/// Waits for the signal to end.
async fn ended() -> Result<&'static str> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    Ok(tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    })
}
