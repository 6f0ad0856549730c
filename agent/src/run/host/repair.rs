// SPDX-License-Identifier: Apache-2.0
//! The host is looked at, and what others changed is put back: devices, addresses, routes, programs. Nothing of it follows from
//! what was set before; each look compares with what is there.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use weft_dataplane::{Attachment as Served, Dataplane, Program};

use super::Host;
use crate::{
    device::{self, Repaired},
    file,
    model::Mode,
    run::{ports::Broken, told::mended},
    serve::metrics::{Mended, Work},
};

/// Where the digest of the host's routes is written down, for the next agent.
pub(in crate::run) fn state_path(run_dir: &Path) -> PathBuf {
    run_dir.join("host-state")
}

/// Whether the host's routes, addresses and links may be others than the last agent knew: nobody has moved generations for it.
pub(in crate::run) fn has_moved_unseen(run_dir: &Path, state: u64) -> bool {
    fs::read_to_string(state_path(run_dir)).map_or(true, |text| text.trim() != format!("{state:016x}"))
}

/// Logs what is wrong with the node, beside `weft status`.
pub(super) fn warn_of<'a>(problems: impl Iterator<Item = &'a String>) {
    problems.for_each(|problem| tracing::warn!(problem, "the node is not as configured"));
}

impl Host {
    /// Writes down which state of the host was seen last.
    pub(in crate::run) fn save_state(&mut self, run_dir: &Path) {
        let state = self.observation.state;
        if self.saved_state == Some(state) {
            return;
        }
        match file::save_bytes(&state_path(run_dir), format!("{state:016x}").as_bytes()) {
            Ok(()) => self.saved_state = Some(state),
            // The next agent has flows decide once more.
            Err(error) => tracing::debug!(%error, "cannot write down the state of the host"),
        }
    }

    /// One look; what cannot be mended, which stands in `weft status` until a later look finds it right, and whether a pass is
    /// due because the node is another now. `planned`: a pass has worked.
    pub(in crate::run) async fn repair(
        &mut self,
        dataplane: &mut Dataplane,
        planned: bool,
        work: &Work,
    ) -> (Vec<Broken>, bool) {
        let (mut changed, devices) = self.repair_devices(work).await;
        changed |= self.follow_api_servers();
        let hops = self.repair_next_hops().await;
        changed |= *hops.as_ref().unwrap_or(&false);
        // Before the first plan those of an earlier run stay as they are.
        let routes = if planned { self.repair_routes(work).await } else { Ok(()) };
        let programs = self.repair_programs(dataplane, work).await;
        let results = [devices, hops.map(drop), routes, programs];
        let broken = results.into_iter().filter_map(|result| Some((None, format!("{:#}", result.err()?))));
        (broken.collect(), changed)
    }

    /// Whether the API server has other addresses than at the last look: nothing of the node's own has changed by that.
    fn follow_api_servers(&mut self) -> bool {
        let known = self.api_servers.addresses();
        let is_new = self.observation.facts.api_servers != known;
        self.config.api_servers.clone_from(&known);
        self.observation.facts.api_servers = known;
        is_new
    }

    /// The node's own devices and their addresses; whether the node is another now.
    async fn repair_devices(&mut self, work: &Work) -> (bool, Result<()>) {
        let before = &self.observation;
        let (repaired, problem) = match device::repair(&self.config).await {
            Ok(repaired) => (Ok(repaired), Ok(())),
            // The way out is gone; what does not depend on it is mended all the same.
            Err(error) => (device::keep(&self.config, before).await, Err(error)),
        };
        let problem = problem.context("cannot look after the node's devices");
        let Repaired { mut observation, changes } = match repaired {
            Ok(repaired) => repaired,
            Err(error) => return (false, problem.and(Err(error).context("cannot mend the node's devices"))),
        };
        mended(work, Mended::Devices, changes);
        observation.facts.next_hops.clone_from(&before.facts.next_hops);
        // Of others than the uplink the plan has what stands in `DEVICES`: their programs follow, and nothing is announced anew. Of
        // other routes the kernel has told.
        let devices = std::mem::replace(&mut observation.devices, before.devices.clone());
        let state = std::mem::replace(&mut observation.state, before.state);
        let heard = std::mem::replace(&mut observation.facts.devices, before.facts.devices.clone());
        let problems = std::mem::replace(&mut observation.problems, before.problems.clone());
        let closed = std::mem::replace(&mut observation.closed, before.closed.clone());
        let pool_devices = std::mem::replace(&mut observation.pool_devices, before.pool_devices.clone());
        let changed = observation != *before;
        let others_changed = heard != before.facts.devices;
        warn_of(problems.iter().filter(|problem| !before.problems.contains(problem)));
        if devices != before.devices {
            tracing::info!(?devices, "the devices by which others are heard have changed");
        }
        if changed {
            tracing::info!("the node's devices or addresses have changed");
            self.observation = observation;
            self.announced = false;
            self.routes.stand = false;
        }
        (self.observation.devices, self.observation.state) = (devices, state);
        (self.observation.problems, self.observation.closed) = (problems, closed);
        self.config.pool_devices.clone_from(&pool_devices);
        self.observation.pool_devices = pool_devices;
        self.observation.facts.devices = heard;
        (changed || others_changed, problem)
    }

    /// Native mode: routers between nodes, and the Ethernet addresses of those without; whether they have changed.
    async fn repair_next_hops(&mut self) -> Result<bool> {
        if self.config.mode != Mode::Native {
            return Ok(false);
        }
        let hops = self.look_up_next_hops(&self.ways.nodes).await?;
        let changed = hops != self.observation.facts.next_hops;
        self.observation.facts.next_hops = hops;
        Ok(changed)
    }

    /// The host's routes, as the last plan has them.
    async fn repair_routes(&mut self, work: &Work) -> Result<()> {
        let planned = self.routes.planned.as_deref().map_or(&[][..], Vec::as_slice);
        let (changes, result) = device::repair_routes(&self.observation, planned).await;
        mended(work, Mended::Routes, changes.count());
        self.routes.stand = result.is_ok();
        result.context("cannot set the host's routes")
    }

    /// Programs of the node's own devices, once they were attached.
    async fn repair_programs(&mut self, dataplane: &mut Dataplane, work: &Work) -> Result<()> {
        if !self.announced {
            return Ok(());
        }
        let attached = dataplane.attachments().context("cannot look for attached programs")?;
        let wanted = self.programs();
        let is_wanted = |ifindex| wanted.iter().any(|(_, _, wanted)| *wanted == ifindex);
        // Ports of a bond by now, or gone to another namespace.
        for Served { ifindex, .. } in attached
            .iter()
            .filter(|found| matches!(found.program, Program::FromUplink | Program::FromL3) && !is_wanted(found.ifindex))
        {
            tracing::info!(ifindex, "detaching from a device by which nobody is heard any more");
            dataplane.detach(*ifindex).with_context(|| format!("cannot detach programs from device {ifindex}"))?;
        }
        let is_missing = |program, ifindex| !attached.contains(&Served { ifindex, program });
        let missing: Vec<_> =
            wanted.iter().filter(|(program, _, ifindex)| is_missing(*program, *ifindex)).cloned().collect();
        let lost = missing.iter().filter(|(_, _, ifindex)| self.served.contains(ifindex)).count();
        let result = Self::attach(&missing, dataplane);
        self.served = wanted.into_iter().map(|(_, _, ifindex)| ifindex).collect();
        mended(work, Mended::Programs, lost);
        result?;
        let opened = self.open_overlay().await?;
        mended(work, Mended::Devices, usize::from(opened));
        Ok(())
    }
}
