// SPDX-License-Identifier: Apache-2.0

//! Random ADD, DEL, CHECK and GC, with plugins and agents killed in between. Afterwards nothing may be left.

mod traces;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    rc::Rc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::{
    bed::{Bed, Options},
    cni::{Attachment, CniFailure, Plug},
    node::Node,
    random::Random,
    shell::Shell as _,
    wait::until_ok,
};
use traces::Traces;

/// CNI spec 1.1.0: try again later. The only error that an ADD may give while the agent is away.
const TRY_AGAIN: u32 = 11;
/// After so many operations it is told how far it is: some ten seconds.
const OPERATIONS_TOLD: usize = 50;
/// Attachments at the same time.
const MOST: usize = 40;

/// Runs `ops` operations of the sequence that `seed` decides; how many there were of each kind.
///
/// # Errors
/// An operation failed that must not, an address was given twice, or something is left.
pub fn churn(ops: usize, seed: u64) -> Result<BTreeMap<&'static str, usize>> {
    let bed = Bed::with(&Options { nodes: 1, ..Options::default() })?;
    let node = Rc::clone(bed.node(1));
    let before = Traces::of(&node)?;
    let mut runtime =
        Runtime { node, random: Random::new(seed), live: Vec::new(), doubtful: Vec::new(), counts: BTreeMap::new() };
    for number in 0..ops {
        if number.is_multiple_of(OPERATIONS_TOLD) {
            eprintln!("churn: operation {number} of {ops}");
        }
        runtime.operate().with_context(|| {
            format!("operation {number} of seed {seed}; the agent's log:\n{}", runtime.node.agent_log())
        })?;
    }
    runtime.end()?;
    let node = Rc::clone(&runtime.node);
    until_ok("every trace to go", Duration::from_secs(20), || before.compare(&Traces::of(&node)?))?;
    Ok(runtime.counts)
}

/// A container runtime with bad luck.
struct Runtime {
    node: Rc<Node>,
    random: Random,
    /// Attachments whose ADD succeeded.
    live: Vec<Attachment>,
    /// Attachments whose last operation was killed: to be deleted.
    doubtful: Vec<Attachment>,
    counts: BTreeMap<&'static str, usize>,
}

impl Runtime {
    fn operate(&mut self) -> Result<()> {
        let choice = if self.live.len() >= MOST { 40 } else { self.random.below(100) };
        let (name, outcome) = match choice {
            0..=34 => ("ADD", self.add()),
            35..=57 => ("DEL", self.del()),
            58..=69 => ("CHECK", self.check()),
            70..=81 => ("ADD killed", self.add_killed()),
            82..=89 => ("DEL killed", self.del_killed()),
            90..=93 => ("GC", self.gc()),
            94..=95 => ("agent killed", self.kill_agent()),
            96..=97 => ("agent killed in ADD", self.kill_agent_in_add()),
            _ => ("agent away", self.agent_away()),
        };
        *self.counts.entry(name).or_default() += 1;
        outcome.context(name)
    }

    fn fresh(&mut self) -> Result<Attachment> {
        match self.random.below(100) {
            0..=14 => self.fresh_vhost_user(),
            15..=39 => Attachment::new(&self.node, "default/churn", Plug::Tap),
            _ => Attachment::new(&self.node, "default/churn", Plug::Veth),
        }
    }

    /// With a device-info file, as Multus asks for one.
    fn fresh_vhost_user(&self) -> Result<Attachment> {
        let mut attachment = Attachment::new(&self.node, "default/churn", Plug::VhostUser)?;
        let file = format!("/run/devinfo/weft-{}-{}", attachment.container_id, attachment.ifname);
        attachment.config["runtimeConfig"] = json!({ "CNIDeviceInfoFile": file });
        Ok(attachment)
    }

    fn add(&mut self) -> Result<()> {
        let mut attachment = self.fresh()?;
        attachment.add()?;
        self.live.push(attachment);
        self.all_addresses_differ()
    }

    fn all_addresses_differ(&self) -> Result<()> {
        let mut seen = BTreeSet::<IpAddr>::new();
        for attachment in &self.live {
            for address in attachment.addresses()? {
                ensure!(
                    seen.insert(address),
                    "{address} was given twice, the second time to {}",
                    attachment.container_id
                );
            }
        }
        Ok(())
    }

    fn take_one(&mut self) -> Option<Attachment> {
        let from =
            if self.random.chance(30) && !self.doubtful.is_empty() { &mut self.doubtful } else { &mut self.live };
        (!from.is_empty()).then(|| from.swap_remove(self.random.below(from.len())))
    }

    /// Now and then the sandbox is gone before.
    fn lose_sandbox(&mut self, attachment: &Attachment) -> Result<()> {
        if self.random.chance(15) {
            self.node.sh(&format!("ip netns del {}", attachment.container_id))?.ok()?;
        }
        Ok(())
    }

    fn del(&mut self) -> Result<()> {
        let Some(mut attachment) = self.take_one() else { return Ok(()) };
        self.lose_sandbox(&attachment)?;
        attachment.del()
    }

    fn check(&mut self) -> Result<()> {
        if self.live.is_empty() {
            return Ok(());
        }
        let at = self.random.below(self.live.len());
        self.live[at].call("CHECK").map(drop)
    }

    fn moment(&mut self) -> Duration {
        Duration::from_micros(500 + self.random.below(40_000) as u64)
    }

    fn add_killed(&mut self) -> Result<()> {
        let attachment = self.fresh()?;
        let limit = self.moment();
        attachment.call_and_kill("ADD", limit)?;
        // A runtime that did not get the result deletes what there may be.
        self.doubtful.push(attachment);
        Ok(())
    }

    fn del_killed(&mut self) -> Result<()> {
        let Some(mut attachment) = self.take_one() else { return Ok(()) };
        let limit = self.moment();
        attachment.call_and_kill("DEL", limit)?;
        attachment.result = None;
        self.doubtful.push(attachment);
        Ok(())
    }

    /// The runtime has forgotten what is in doubt, and tells what it knows.
    fn gc(&mut self) -> Result<()> {
        let mut gc = self.fresh()?;
        let valid = self.live.iter().map(|known| json!({"containerID": known.container_id, "ifname": known.ifname}));
        gc.config["cni.dev/valid-attachments"] = valid.collect();
        gc.call("GC")?;
        self.doubtful.clear();
        for known in &self.live {
            known.call("CHECK").context("CHECK after GC")?;
        }
        Ok(())
    }

    fn kill_agent(&mut self) -> Result<()> {
        self.node.stop_agent(Signal::SIGKILL)?;
        self.node.start_agent()?;
        self.node.agent_ready()
    }

    /// At any moment of an ADD that makes the agent start a process.
    fn kill_agent_in_add(&mut self) -> Result<()> {
        let mut attachment = self.fresh_vhost_user()?;
        let seconds = self.moment().as_secs_f64();
        let kill = format!("agent=$(pidof weft-agent); ( sleep {seconds:.4}; kill -9 $agent ) >/dev/null 2>&1 &");
        self.node.sh(&kill)?.ok()?;
        let added = attachment.add();
        // It may be gone already.
        drop(self.node.stop_agent(Signal::SIGKILL));
        self.node.start_agent()?;
        self.node.agent_ready()?;
        match added {
            Ok(()) => self.live.push(attachment),
            Err(_) => self.doubtful.push(attachment),
        }
        Ok(())
    }

    /// Without an agent ADD says that it should be tried again, and DEL works.
    fn agent_away(&mut self) -> Result<()> {
        self.node.stop_agent(Signal::SIGKILL)?;
        let attachment = self.fresh()?;
        match attachment.call("ADD") {
            Ok(_) => bail!("ADD succeeded without an agent"),
            Err(error) => {
                let failure = error.downcast::<CniFailure>()?;
                ensure!(failure.code == TRY_AGAIN, "{failure}");
            }
        }
        self.del().context("DEL without an agent")?;
        self.node.start_agent()?;
        self.node.agent_ready()
    }

    /// The runtime ends: half of the pods by DEL, the rest by GC.
    fn end(&mut self) -> Result<()> {
        for mut attachment in self.live.split_off(self.live.len() / 2) {
            attachment.del()?;
        }
        let mut gc = self.fresh()?;
        gc.config["cni.dev/valid-attachments"] = json!([]);
        gc.call("GC")?;
        for attachment in &mut self.live {
            attachment.result = None;
        }
        self.live.clear();
        self.doubtful.clear();
        Ok(())
    }
}
