// SPDX-License-Identifier: Apache-2.0

//! A world put into practice: simulated nodes with real agents, the world's pods plugged in, and the moment when every agent has
//! applied it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use weft_abi::RemoteKind;
use weft_api::{Answer, Client, Request, StatusReport};
use weft_dataplane::Maps;
use weft_probe::frames::index_of;

use super::{
    generate::node_name,
    manifest, model,
    world::{HostPort, Mode, Pod, PortKind, World},
};
use crate::{
    bed::{self, Bed, Options},
    binaries::Binaries,
    cni::{Attachment, Plug},
    hostile::Place as _,
    node,
    wait::until_ok,
};

/// The node that most questions are asked at.
pub(super) const HERE: &str = "node1";

pub(super) const SERVICE_CIDRS: [&str; 2] = bed::SERVICE_CIDRS;

/// The file that the world is in.
const FILE: &str = "world.yaml";
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two questions to an agent: while it has not read the state, and while it applies it.
const PAUSE: Duration = Duration::from_millis(15);
const STEP: Duration = Duration::from_millis(2);

/// A pod that is plugged in.
pub(super) struct Plugged {
    /// None where the attachment belongs to another device.
    pub(super) attachment: Attachment,
    pub(super) ifindex: u32,
    pub(super) mac: [u8; 6],
    addresses: Vec<IpAddr>,
    host_ports: Vec<HostPort>,
    pub(super) kind: PortKind,
    pub(super) node: String,
}

/// By address of a pod its node and device.
pub(super) type Devices = BTreeMap<IpAddr, (String, u32)>;

/// See the module.
pub(super) struct Site {
    // Before the bed: attachments are released by its agents.
    pub(super) plugged: BTreeMap<String, Plugged>,
    pub(super) bed: Bed,
    generation: u32,
}

impl Site {
    /// So many nodes with agents.
    pub(super) fn new(mode: Mode, nodes: u8, binaries: &Binaries) -> Result<Self> {
        let mode = match mode {
            Mode::Vxlan => node::Mode::Vxlan,
            Mode::Native => node::Mode::Native,
        };
        let _turn = turn();
        let bed = Bed::of(&Options { nodes, mode, ..Options::default() }, binaries)?;
        Ok(Self { plugged: BTreeMap::new(), bed, generation: 0 })
    }

    /// Puts `world` in the place of the one before; every agent has applied it when this returns.
    ///
    /// # Errors
    /// A pod cannot be plugged in, an agent refuses an object, or does not apply it in time.
    pub(super) fn apply(&mut self, world: &World) -> Result<()> {
        let real: BTreeSet<&str> = self.bed.nodes().iter().map(|node| node.name()).collect();
        let wanted: BTreeMap<String, &Pod> = world
            .pods
            .iter()
            .filter(|pod| real.contains(pod.node.as_str()) && !pod.host_network)
            .map(|pod| (pod.id(), pod))
            .collect();
        self.plugged.retain(|id, plugged| {
            wanted.get(id).is_some_and(|pod| {
                (&pod.node, &pod.addresses, pod.kind, &pod.host_ports)
                    == (&plugged.node, &plugged.addresses, plugged.kind, &plugged.host_ports)
            })
        });
        self.write(world)?;
        for (id, pod) in wanted {
            if !self.plugged.contains_key(&id) {
                let plugged = self.plug(&id, pod).with_context(|| format!("plug in {id}"))?;
                self.plugged.insert(id, plugged);
            }
        }
        Ok(())
    }

    /// As [`Site::apply`], and whoever holds what several ask for got it in this world: the agents see one without Services first.
    ///
    /// # Errors
    /// As [`Site::apply`].
    pub(super) fn apply_anew(&mut self, world: &World) -> Result<()> {
        if self.bed.nodes().iter().any(|node| model::is_contested(world, node.name())) {
            self.apply(&World { services: Vec::new(), slices: Vec::new(), ..world.clone() })?;
        }
        self.apply(world)
    }

    /// The device of each pod's address.
    pub(super) fn devices(&self) -> Devices {
        let of_pod = |plugged: &Plugged| {
            let device = (plugged.node.clone(), plugged.ifindex);
            plugged.addresses.clone().into_iter().map(move |address| (address, device.clone()))
        };
        self.plugged.values().flat_map(of_pod).collect()
    }

    /// Takes a pod's device away and makes it anew.
    pub(super) fn plug_anew(&mut self, id: &str, world: &World) -> Result<()> {
        if self.plugged.remove(id).is_some() {
            let pod = world.pod(id).context("the pod is not in the world")?;
            let plugged = self.plug(id, pod).with_context(|| format!("plug in {id} again"))?;
            self.plugged.insert(id.to_owned(), plugged);
        }
        Ok(())
    }

    /// Kills an agent and starts it again; the world is applied when this returns.
    pub(super) fn restart(&mut self, number: usize, world: &World) -> Result<()> {
        let node = self.bed.node(number);
        let turn = turn();
        node.stop_agent(Signal::SIGKILL)?;
        node.start_agent()?;
        node.agent_ready()?;
        drop(turn);
        self.write(world)
    }

    fn write(&mut self, world: &World) -> Result<()> {
        self.generation += 1;
        let names: Vec<&str> = self.bed.nodes().iter().map(|node| node.name()).collect();
        self.bed.place(FILE, &manifest::documents(world, &names, self.generation)?)?;
        for number in 1..=names.len() {
            let waited = self.wait(number).and_then(|()| self.wait_for_neighbours(number));
            waited.with_context(|| format!("the agent's log: {}", self.bed.node(number).agent_log()))?;
        }
        Ok(())
    }

    /// Where pods are routed, nothing is heard of a neighbour's pods until its Ethernet address is known: that takes the kernels a
    /// moment, and is no question of the oracle.
    fn wait_for_neighbours(&self, number: usize) -> Result<()> {
        let maps = Maps::open(&self.bed.node(number).machine().path("sys/fs/bpf/weft"))?;
        until_ok("the Ethernet addresses of all neighbours are known", PATIENCE, || {
            for entry in maps.remotes().iter() {
                let (_, remote) = entry?;
                ensure!(
                    remote.kind != RemoteKind::Native as u32 || remote.mac != [0; 6],
                    "that of {} is not",
                    IpAddr::from(remote.via)
                );
            }
            Ok(())
        })
    }

    fn socket(&self, number: usize) -> PathBuf {
        self.bed.node(number).machine().path("run/weft/agent.sock")
    }

    /// Until the agent reports the Service that marks the state, which stands in the same file as everything else, and has
    /// applied it. It looks at its folder three times a second: until it has read the file it is asked as little as does no harm.
    fn wait(&self, number: usize) -> Result<()> {
        let mut client = Client::connect(self.socket(number), Some(PATIENCE))?;
        let name = manifest::marker_name(self.generation);
        let until = std::time::Instant::now() + PATIENCE;
        let late = || std::time::Instant::now() > until;
        let mut told = false;
        loop {
            if !told {
                let Answer::Services(services) = client.call(&Request::Services)? else { bail!("another answer") };
                told = services.iter().any(|service| service.namespace == "oracle" && service.name == name);
            }
            if told || late() {
                let Answer::Status(status) = client.call(&Request::Status)? else { bail!("another answer") };
                if told && status.applied {
                    return content(*status);
                }
                if late() {
                    bail!("{} has not applied state {}: {status:?}", node_name(number as u8), self.generation);
                }
            }
            std::thread::sleep(if told { STEP } else { PAUSE });
        }
    }

    fn plug(&self, id: &str, pod: &Pod) -> Result<Plugged> {
        let node = self.bed.nodes().iter().find(|node| node.name() == pod.node).context("the node has no agent")?;
        let plug = match pod.kind {
            PortKind::Veth => Plug::Veth,
            PortKind::Tap => Plug::Tap,
            PortKind::Vhost => Plug::VhostUser,
        };
        let mut attachment = Attachment::new(node, id, plug)?;
        let addresses: Vec<String> = pod.addresses.iter().map(ToString::to_string).collect();
        attachment.args = format!("{};IP={}", attachment.args, addresses.join(","));
        if !pod.host_ports.is_empty() {
            attachment.config["runtimeConfig"] = json!({"portMappings": mappings(&pod.host_ports)});
        }
        attachment.add()?;
        let name = text(&attachment.interface(false)?, "name")?;
        // The guest's address is the same behind a tap, whose own is the gateway's.
        let mac = match pod.kind {
            PortKind::Veth => text(&attachment.interface(true)?, "mac")?.parse::<weft_api::Mac>()?.0,
            PortKind::Tap | PortKind::Vhost => self.guest_mac(node.name(), id)?,
        };
        let ifindex = node.inside(move || index_of(&name))?;
        Ok(Plugged {
            attachment,
            ifindex,
            mac,
            addresses: pod.addresses.clone(),
            host_ports: pod.host_ports.clone(),
            kind: pod.kind,
            node: pod.node.clone(),
        })
    }

    fn guest_mac(&self, node: &str, id: &str) -> Result<[u8; 6]> {
        let number = self.bed.nodes().iter().position(|found| found.name() == node).context("no such node")? + 1;
        let mut client = Client::connect(self.socket(number), Some(PATIENCE))?;
        until_ok("the endpoint is reported", PATIENCE, || {
            let Answer::Endpoints(endpoints) = client.call(&Request::Endpoints)? else { bail!("another answer") };
            let of_pod = |endpoint: &&weft_api::EndpointReport| {
                endpoint.pod.as_ref().is_some_and(|pod| format!("{}/{}", pod.namespace, pod.name) == id)
            };
            Ok(endpoints.iter().find(of_pod).context("no such endpoint")?.mac.0)
        })
    }
}

/// `hostPort` of a pod as a runtime hands it over.
fn mappings(ports: &[HostPort]) -> Value {
    let mapping = |port: &HostPort| {
        let address = port.address.map(|address| address.to_string()).unwrap_or_default();
        let protocol = manifest::protocol(port.protocol).to_lowercase();
        json!({"hostPort": port.port, "containerPort": port.target, "protocol": protocol, "hostIP": address})
    };
    ports.iter().map(mapping).collect()
}

/// Agents start one at a time: the verifier takes a CPU for seconds, and many at once would not be ready in time.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn text(interface: &serde_json::Value, key: &str) -> Result<String> {
    Ok(interface[key].as_str().with_context(|| format!("no {key} in {interface}"))?.to_owned())
}

/// Of what an agent names: addresses that are not their pod's; of Services what another one has, what they may not have, and ranges that
/// are none or close only one family.
const NAMED: [&str; 6] = [
    "pod CIDR of",
    "is taken by",
    "is not served",
    "it serves everybody",
    "it admits nobody",
    "is no address that a Service can have",
];

/// What an agent refuses would be compared with an answer that knows it.
fn content(StatusReport { problems, .. }: StatusReport) -> Result<()> {
    let is_named = |problem: &&String| NAMED.iter().any(|text| problem.contains(text));
    let unexpected: Vec<&String> = problems.iter().filter(|problem| !is_named(problem)).collect();
    ensure!(unexpected.is_empty(), "the agent finds: {unexpected:?}");
    Ok(())
}

/// Whether the pod with this address has another device than before.
pub(super) fn is_anew(before: &Devices, after: &Devices, address: IpAddr) -> bool {
    after.get(&address).is_some_and(|now| before.get(&address).is_some_and(|was| was != now))
}
