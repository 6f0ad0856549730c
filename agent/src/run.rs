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
//! | turns: requests and changes, one pass for all that wait | `engine` |
//! | what a turn asks of the node | `node`: `ports`, `host`, `passes`, `told` |
//!
//! SIGTERM and SIGINT end the process and nothing else: maps, links and devices stay, and packets go on.
//! [`cleanup::run`] is what removes them.
//!
//! All threads stay in the network namespace that the process was started in.

mod asks;
pub mod cleanup;
mod engine;
mod host;
pub mod install;
mod interim;
mod memory;
mod node;
mod passes;
mod ports;
mod remembered;
mod reporters;
mod told;

use std::{
    fs, io,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    task::JoinSet,
    time::Instant,
};
use weft_dataplane::{Dataplane, Maps, Options};

use self::{
    engine::Engine,
    host::{ApiServers, Host},
    interim::Interim,
    memory::NodeMemory,
    node::Node,
    passes::Passes,
    ports::Ports,
    remembered::Keeper,
};
use crate::{
    apply,
    attachment::{Attachments, Settings},
    config::{Config, Source},
    device::{self, Changes, DeviceConfig, Limits, Observation},
    event::Events,
    model::{Attachment, Mode, Standing},
    plan::Planner,
    serve::{Command, Shared, View, api, flows, health, node_health, proxy, service_health},
    vhost::{self, Cgroups, Devices},
    watch::{self as cluster, ApiServer, Feed},
};

/// Runs the agent until it is told to end.
///
/// # Errors
/// What keeps it from starting, each naming its object; once it serves, nothing ends it but a signal.
pub async fn run(config: Config) -> Result<()> {
    let _lock = lock(&config)?;
    memory::sweep(&config);
    let (shared, commands) = Shared::with(first_view(&config), Planner::default());
    let mut tasks = JoinSet::new();
    serve(&config, &shared, &mut tasks).await?;
    let feed = cluster::start(source(&config), &config.node_name);
    let (state_dir, node) = (config.state_dir.clone(), config.node_name.clone());
    // A folder is read, or tells why it cannot be.
    let may_be_silent = config.source == Source::Kubernetes;
    let feed = feed.or_remembered(may_be_silent, move || remembered::load(&state_dir, &node));
    let keeper = || {
        let (state_dir, node) = (config.state_dir.clone(), config.node_name.clone());
        Keeper { state_dir, node, shared: shared.clone() }
    };
    tasks.spawn(keeper().run());
    let last = keeper();
    let config = Arc::new(config);
    let work = start(config.clone(), shared, commands, feed);
    tokio::select! {
        result = work => result?,
        signal = ended() => tracing::info!(signal = signal?, "ending; the dataplane goes on"),
    }
    last.write_last().await;
    // A socket without a listener would only puzzle clients.
    drop(fs::remove_file(&config.socket));
    Ok(())
}

/// One agent at a time. The file is root's alone, and its folder can be written by root alone: whoever can open the file can
/// hold its lock, and keep the agent from starting.
fn lock(config: &Config) -> Result<Flock<fs::File>> {
    let folder = &config.run_dir;
    let path = folder.join("agent.lock");
    fs::create_dir_all(folder).with_context(|| format!("runDir: cannot create {}", folder.display()))?;
    // The sockets of devices are below it: others may pass.
    restrict(folder, 0o755).with_context(|| format!("runDir: cannot restrict {}", folder.display()))?;
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    let file = options.open(&path).with_context(|| format!("runDir: cannot open {}", path.display()))?;
    // An earlier version made it readable for everybody.
    restrict(&path, 0o600).with_context(|| format!("runDir: cannot restrict {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|(_, error)| anyhow::Error::from(error))
        .with_context(|| format!("cannot lock {}: another weft-agent runs on this node; end it first", path.display()))
}

/// Takes away what `most` does not allow.
fn restrict(path: &Path, most: u32) -> io::Result<()> {
    let mode = fs::symlink_metadata(path)?.permissions().mode() & 0o7777;
    if mode & !most != 0 {
        fs::set_permissions(path, fs::Permissions::from_mode(mode & most))?;
    }
    Ok(())
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
        source: Some(told::source_state(config, &Standing::default())),
        not_ready: Some("starting".to_owned()),
        ..View::default()
    }
}

async fn serve(config: &Config, shared: &Arc<Shared>, tasks: &mut JoinSet<()>) -> Result<()> {
    let api = api::listen(&config.socket)?;
    let health = health::listen(&config.health_addresses).await?;
    if let Some(address) = &config.metrics_address {
        let metrics = health::listen_for_metrics(address).await?;
        tasks.spawn(health::serve_metrics(metrics, shared.clone()));
    }
    tasks.spawn(api::serve(api, shared.clone()));
    for listener in health {
        tasks.spawn(health::serve(listener, shared.clone()));
    }
    if let Some(port) = config.healthz_port() {
        tasks.spawn(node_health::serve(port.get(), shared.clone()));
    }
    if let Some(port) = config.metrics_port() {
        tasks.spawn(proxy::serve(port.get(), shared.clone()));
    }
    tasks.spawn(service_health::serve(shared.clone()));
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
    mut feed: Feed,
) -> Result<()> {
    let began = Instant::now();
    let host::First { memory, is_assumed } = host::first_pod_cidrs(&config, &shared, &mut feed).await?;
    let mut device_config = device_config(&config, memory);
    let api_servers = ApiServers::start(source(&config)).await;
    device_config.api_servers = api_servers.addresses();
    // First: what changes from here on is looked at.
    let changes = Changes::open()?;
    let mut observation = device::apply(&device_config).await.context("cannot prepare the node's devices")?;
    let dataplane = open(&config)?;
    if host::has_moved_unseen(&config.run_dir, observation.state) {
        apply::move_routes(&**dataplane.maps()).context("cannot move the generation of routes")?;
    }
    device_config.limits = limits(&config, dataplane.maps());
    device_config.limits.put(&mut observation.facts.config);
    let attachments = open_attachments(&config, &device_config, &observation)?;
    flows::sample(dataplane.maps(), config.flow_sample).context("cannot ask for flow events")?;
    let devices = Devices::new(vhost_binary(&config)?, vhost_folder(&config), Cgroups::find(), shared.devices.clone());
    let records: Vec<Arc<Attachment>> = attachments.all().cloned().collect();
    let numbers = memory::recover(&**dataplane.maps(), &records);
    shared.planner_mut().resume(numbers.context("cannot read the numbers in the dataplane's maps")?);
    let ports = Ports::new(attachments, devices, shared.work.guests.clone());
    let host = Host::new(device_config, observation, api_servers);
    let passes = Passes::default();
    let events = Events::start(&source(&config), &config.node_name);
    let mut node = Node::new(config, dataplane, ports, host, passes, events);
    node.adopt().await?;
    shared.set_maps(node.maps().clone());
    let flow_events = node.events().context("cannot read flow events")?;
    let reader = tokio::spawn(flows::read(flow_events, shared.clone(), node.maps().clone()));
    let goes_on = node.goes_on().await.context("cannot go on with what an earlier agent has left")?;
    // Nobody gets an address of a pod CIDR that only an earlier agent knew.
    let interim = (goes_on || is_assumed).then(|| Interim::new(began, goes_on));
    feed.listen(interim.as_ref().map(|interim| interim.until().into_std()));
    Engine::new(shared, commands, feed, changes, node, interim).run().await;
    reader.abort();
    bail!("the object source has ended; this is a bug of weft-agent")
}

fn device_config(config: &Config, NodeMemory { pod_cidrs, retired, addresses }: NodeMemory) -> DeviceConfig {
    DeviceConfig {
        node_name: config.node_name.clone(),
        mode: config.mode,
        uplink: config.uplink.clone(),
        node_addresses: config.node_addresses.clone(),
        told_addresses: addresses,
        pod_cidrs,
        retired_pod_cidrs: retired,
        service_cidrs: config.service_cidrs.clone(),
        vni: config.vni,
        vxlan_port: config.vxlan_port,
        mtu: config.mtu,
        masquerade_v4: config.masquerade.ipv4,
        mss_clamp: config.mss_clamp.value(),
        timeouts: config.connection_timeouts.ticks(),
        checks_neighbours: config.check_neighbours,
        masquerade_v6: config.masquerade.ipv6,
        masquerade_addresses: config.masquerade_addresses.iter().map(|address| address.0).collect(),
        pool_devices: device::PoolDevices::new(),
        plain_cidrs: config.non_masquerade_cidrs.clone(),
        exposure: config.services.clone(),
        api_servers: None,
        masquerade_ports: config.masquerade_ports.map(|ports| ports.first..=ports.last),
        // Once the maps are there.
        limits: Limits::default(),
    }
}

/// By the sizes that the maps have.
fn limits(config: &Config, maps: &Maps) -> Limits {
    let flows = [maps.flows4().capacity(), maps.flows6().capacity()];
    Limits::new(&config.port_limits, flows, maps.ports().capacity())
}

fn open(config: &Config) -> Result<Dataplane> {
    let options =
        Options { sizes: config.map_sizes, cgroup: Some(vhost::cgroup_root()), ..Options::new(&config.pin_dir) };
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

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{PermissionsExt as _, symlink},
        path::Path,
    };

    use super::lock;
    use crate::config::Config;

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn the_lock_is_roots_alone() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config { run_dir: dir.path().join("run"), ..Config::default() };
        let file = config.run_dir.join("agent.lock");
        drop(lock(&config).unwrap());
        assert_eq!(mode(&file), 0o600);
        // As an earlier version, or somebody's umask, has left it.
        fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
        fs::set_permissions(&config.run_dir, fs::Permissions::from_mode(0o777)).unwrap();
        let held = lock(&config).unwrap();
        assert_eq!((mode(&file), mode(&config.run_dir)), (0o600, 0o755));
        let error = format!("{:#}", lock(&config).unwrap_err());
        assert!(error.contains("another weft-agent runs"), "{error}");
        drop(held);
        fs::remove_file(&file).unwrap();
        symlink(dir.path().join("elsewhere"), &file).unwrap();
        lock(&config).unwrap_err();
        assert!(!dir.path().join("elsewhere").exists());
    }
}
