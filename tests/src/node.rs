// SPDX-License-Identifier: Apache-2.0

//! A simulated node with its agent.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    fs::{self, File},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{sys::signal::Signal, unistd::Pid};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use weft_api::{Answer, Client, Request};

use crate::{
    bed::{Options, Outside, SERVICE_CIDRS, SHARED},
    namespace::Namespace,
    process::{Outcome, Process},
    shell::Shell,
    wait::until_ok,
};

/// How long an agent may take for one answer.
const ANSWER: Duration = Duration::from_secs(5);

/// How pods of different nodes reach each other.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// Encapsulated.
    Vxlan,
    /// Routed.
    Native,
}

/// A simulated node.
pub struct Node {
    machine: Namespace,
    number: u8,
    agent: RefCell<Option<Process>>,
    plugged: Cell<u32>,
}

impl Node {
    pub(crate) fn new(machine: Namespace, number: u8, options: &Options) -> Result<Self> {
        let node = Self { machine, number, agent: RefCell::new(None), plugged: Cell::new(0) };
        node.sh(&node.script())?.ok().with_context(|| format!("set up {}", node.name()))?;
        let file = node.machine.path(node.file("agent.yaml"));
        fs::write(&file, serde_yaml::to_string(&node.config(options))?)?;
        Ok(node)
    }

    /// Its name in the API.
    #[must_use]
    pub fn name(&self) -> &str {
        self.machine.name()
    }

    /// Its namespaces.
    #[must_use]
    pub fn machine(&self) -> &Namespace {
        &self.machine
    }

    /// Its IPv4 address on the switch.
    #[must_use]
    pub fn v4(&self) -> Ipv4Addr {
        Ipv4Addr::new(192, 168, 119, self.number)
    }

    /// Its IPv6 address on the switch.
    #[must_use]
    pub fn v6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0x119, 0, 0, 0, 0, 0, self.number.into())
    }

    /// Its address of the family of `peer`.
    #[must_use]
    pub fn address_for(&self, peer: IpAddr) -> IpAddr {
        if peer.is_ipv4() { self.v4().into() } else { self.v6().into() }
    }

    /// A path of its own inside.
    pub(crate) fn file(&self, name: &str) -> String {
        format!("{SHARED}/{}/{name}", self.name())
    }

    /// A number that no other attachment of this node has.
    pub(crate) fn next_plug(&self) -> u32 {
        self.plugged.set(self.plugged.get() + 1);
        self.plugged.get()
    }

    fn script(&self) -> String {
        format!(
            "set -e
             mkdir -p {folder}
             ip address add {v4}/24 dev eth0
             ip address add {v6}/64 dev eth0 nodad
             ip link set eth0 up
             ip route add default via {router4}
             ip route add default via {router6}",
            folder = self.file(""),
            v4 = self.v4(),
            v6 = self.v6(),
            router4 = Outside::GATEWAY_V4,
            router6 = Outside::GATEWAY_V6,
        )
    }

    fn config(&self, options: &Options) -> Value {
        let mut config = json!({
            "nodeName": self.name(),
            "source": format!("dir:{SHARED}/manifests"),
            "mode": match options.mode { Mode::Vxlan => "vxlan", Mode::Native => "native" },
            "podCIDRs": [format!("10.244.{}.0/24", self.number), format!("fd00:244:0:{}::/64", self.number)],
            "serviceCIDRs": SERVICE_CIDRS,
            "stateDir": self.file("state"),
            "cni": { "install": false },
            "metricsAddress": "127.0.0.1:9912",
        });
        for (key, value) in options.config.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        if let Some(keys) = config.as_object_mut() {
            keys.retain(|_, value| !value.is_null());
        }
        config
    }

    /// Starts the agent; its log goes to a file of the node.
    ///
    /// # Errors
    /// It could not be started.
    pub fn start_agent(&self) -> Result<()> {
        self.start_agent_of(Path::new(&format!("{SHARED}/bin/weft-agent")))
    }

    /// Starts the agent that is in a file of this machine.
    ///
    /// # Errors
    /// It could not be started.
    pub fn start_agent_of(&self, program: &Path) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.machine.path(self.file("agent.log")))?;
        let errors = log.try_clone()?;
        let config = self.file("agent.yaml");
        let agent = self.machine.start("weft-agent", |command| {
            command.arg(program).args(["--config", &config]);
            command.env("RUST_LOG", std::env::var("WEFT_TEST_LOG").unwrap_or_else(|_| "info".to_owned()));
            command.stdout(log).stderr(errors);
        })?;
        *self.agent.borrow_mut() = Some(agent);
        Ok(())
    }

    /// Changes a key of the agent's configuration; the next one that starts reads it.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn configure(&self, key: &str, value: &Value) -> Result<()> {
        let file = self.machine.path(self.file("agent.yaml"));
        let mut config: Value = serde_yaml::from_slice(&fs::read(&file)?)?;
        config[key] = value.clone();
        Ok(fs::write(&file, serde_yaml::to_string(&config)?)?)
    }

    /// Waits until the agent can serve.
    ///
    /// # Errors
    /// It ended, or is not ready within two minutes, which a busy machine's verifier may take; the message has the end of its log.
    pub fn agent_ready(&self) -> Result<()> {
        let ready = until_ok("the agent is ready", Duration::from_secs(120), || {
            if !self.agent.borrow_mut().as_mut().is_some_and(Process::is_running) {
                return Ok(Err("it ended"));
            }
            // Asked without a process: what is polled takes no CPU from the verifier that it waits for.
            let mut client = Client::connect(self.machine.path("run/weft/agent.sock"), Some(ANSWER))?;
            let Answer::Status(status) = client.call(&Request::Status)? else { bail!("another answer") };
            ensure!(status.not_ready.is_none(), "{:?}", status.not_ready);
            Ok(Ok(()))
        });
        match ready {
            Ok(Ok(())) => Ok(()),
            Ok(Err(reason)) => bail!("the agent of {}: {reason}\n{}", self.name(), self.agent_log()),
            Err(error) => Err(error.context(format!("the agent of {}\n{}", self.name(), self.agent_log()))),
        }
    }

    /// Waits until the agent knows the way to the pods of so many other nodes. Until then it takes them for something
    /// outside, and what its workloads send them is lost.
    ///
    /// # Errors
    /// It does not within half a minute.
    pub fn agent_knows(&self, others: usize) -> Result<()> {
        until_ok("the agent knows the other nodes", Duration::from_secs(30), || {
            let status: weft_api::StatusReport = self.weft_json("status")?;
            let known: BTreeSet<&str> = status.routes.iter().map(|route| route.node.as_str()).collect();
            ensure!(known.len() == others, "{} knows {known:?}", self.name());
            Ok(())
        })
    }

    /// Ends the agent by `signal`.
    ///
    /// # Errors
    /// It does not run, or does not end.
    pub fn stop_agent(&self, signal: Signal) -> Result<()> {
        self.agent.borrow_mut().take().context("the agent does not run")?.stop(signal)
    }

    /// Sends `signal` to the agent, and does not wait for it to end.
    ///
    /// # Errors
    /// It does not run.
    pub fn signal_agent(&self, signal: Signal) -> Result<()> {
        self.agent.borrow().as_ref().context("the agent does not run")?.signal(signal)
    }

    /// The agent's process.
    ///
    /// # Errors
    /// It was not started.
    pub fn agent_pid(&self) -> Result<Pid> {
        self.agent.borrow().as_ref().map(Process::pid).context("the agent does not run")
    }

    /// Runs the agent's command that removes everything it has made.
    ///
    /// # Errors
    /// The node does not answer.
    pub fn cleanup(&self) -> Result<Outcome> {
        self.sh(&format!("weft-agent --config {} cleanup", self.file("agent.yaml")))
    }

    /// The last lines of the agent's log.
    #[must_use]
    pub fn agent_log(&self) -> String {
        let log = std::fs::read_to_string(self.machine.path(self.file("agent.log"))).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// How often the agents of this node have logged `text`.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn logged(&self, text: &str) -> Result<usize> {
        let log = fs::read_to_string(self.machine.path(self.file("agent.log")))?;
        Ok(log.matches(text).count())
    }

    /// What `weft ARGUMENTS` prints here.
    ///
    /// # Errors
    /// It failed.
    pub fn weft(&self, arguments: &str) -> Result<String> {
        self.sh(&format!("weft {arguments}"))?.ok().with_context(|| format!("weft {arguments} on {}", self.name()))
    }

    /// What `weft ARGUMENTS -o json` prints here, read.
    ///
    /// # Errors
    /// It failed, or printed something else.
    pub fn weft_json<T: DeserializeOwned>(&self, arguments: &str) -> Result<T> {
        let text = self.weft(&format!("{arguments} -o json"))?;
        serde_json::from_str(&text).with_context(|| format!("weft {arguments} printed: {text}"))
    }

    /// What the agent tells Prometheus.
    ///
    /// # Errors
    /// It does not answer.
    pub fn metrics(&self) -> Result<String> {
        self.sh("busybox wget -q -O - http://127.0.0.1:9912/metrics")?.ok()
    }

    /// How many packets were dropped here for `reason`.
    ///
    /// # Errors
    /// The agent does not answer.
    pub fn drops(&self, reason: &str) -> Result<u64> {
        let drops: Vec<weft_api::DropReport> = self.weft_json("drops")?;
        Ok(drops.iter().filter(|drop| drop.reason == reason).map(|drop| drop.packets).sum())
    }
}

/// A script that detaches every program of Weft from a device, as somebody with tc and bpftool might.
#[must_use]
pub fn detach_programs(device: &str) -> String {
    format!(
        "set -e
         if tc qdisc show dev {device} | grep -q clsact; then tc qdisc del dev {device} clsact; exit; fi
         for pin in /sys/fs/bpf/weft/*/links/$(cat /sys/class/net/{device}/ifindex)-*; do bpftool link detach pinned $pin; done"
    )
}

impl Shell for Node {
    fn label(&self) -> String {
        self.name().to_owned()
    }

    fn folder(&self) -> String {
        "/run".to_owned()
    }

    fn sh(&self, script: &str) -> Result<Outcome> {
        self.machine.sh(None, &format!("export PATH={SHARED}/bin:$PATH\n{script}"))
    }
}
