// SPDX-License-Identifier: Apache-2.0
//! The node is looked at, and what others changed is put back: devices, addresses, routes, programs, ports. Nothing of it
//! follows from what was set before; each look compares with what is there.

use anyhow::{Context as _, Result};
use weft_api::AttachmentId;
use weft_dataplane::Attachment as Served;

use super::{
    node::{Broken, Node, State},
    port::{Guarded, WORKLOAD_PROGRAMS},
};
use crate::{
    device::{self, Repaired, links},
    model::Mode,
    serve::metrics::{Mended, Work},
};

impl Node {
    /// One look; whether a pass is due because the node is another now. What cannot be mended stands in `weft status` until a
    /// later look finds it right.
    pub(super) async fn repair(&mut self, work: &Work) -> bool {
        let (mut changed, devices) = self.repair_devices(work).await;
        let hops = self.repair_next_hops().await;
        changed |= *hops.as_ref().unwrap_or(&false);
        let routes = self.repair_routes(work).await;
        let programs = self.repair_programs(work).await;
        let ports = self.repair_ports(work).await;
        let results = [devices, hops.map(drop), routes, programs];
        let told = results.into_iter().filter_map(|result| Some((None, format!("{:#}", result.err()?))));
        self.tell(told.chain(ports).collect());
        changed
    }

    /// Keeps what could not be mended, and logs each problem once: a port's when it is seen for the second time, because a pod
    /// that is being deleted loses its link a moment before the agent hears of it.
    fn tell(&mut self, broken: Vec<Broken>) {
        let State { broken: before, told, .. } = &mut self.state;
        told.retain(|told| broken.iter().any(|(_, problem)| problem == told));
        for (port, problem) in &broken {
            let again = before.iter().any(|(_, known)| known == problem);
            if (again || port.is_none()) && told.insert(problem.clone()) {
                tracing::warn!(problem, "cannot mend the node");
            }
        }
        *before = broken;
    }

    /// The node's own devices and their addresses; whether the node is another now.
    async fn repair_devices(&mut self, work: &Work) -> (bool, Result<()>) {
        let before = &self.observation;
        let (repaired, problem) = match device::repair(&self.device_config).await {
            Ok(repaired) => (Ok(repaired), Ok(())),
            // The way out is gone; what does not depend on it is mended all the same.
            Err(error) => (device::keep(&self.device_config, before).await, Err(error)),
        };
        let problem = problem.context("cannot look after the node's devices");
        let Repaired { mut observation, changes } = match repaired {
            Ok(repaired) => repaired,
            Err(error) => return (false, problem.and(Err(error).context("cannot mend the node's devices"))),
        };
        mended(work, Mended::Devices, changes);
        observation.facts.next_hops.clone_from(&before.facts.next_hops);
        let changed = observation != *before;
        if changed {
            tracing::info!("the node's devices or addresses have changed");
            self.observation = observation;
            self.state.announced = false;
            self.state.routes_stand = false;
        }
        (changed, problem)
    }

    /// Native mode: routers between nodes, and the Ethernet addresses of those without; whether they have changed.
    async fn repair_next_hops(&mut self) -> Result<bool> {
        if self.config.mode != Mode::Native {
            return Ok(false);
        }
        let hops = self.look_up_next_hops(&self.state.neighbours).await?;
        let changed = hops != self.observation.facts.next_hops;
        self.observation.facts.next_hops = hops;
        Ok(changed)
    }

    /// The host's routes, as the last plan has them. Before the first plan those of an earlier run stay as they are.
    async fn repair_routes(&mut self, work: &Work) -> Result<()> {
        if !self.state.ready {
            return Ok(());
        }
        let (changes, result) =
            device::repair_routes(&self.observation, self.state.planned_routes.as_deref().unwrap_or_default()).await;
        mended(work, Mended::Routes, changes.count());
        self.state.routes_stand = result.is_ok();
        result.context("cannot set the host's routes")
    }

    /// Programs of the node's own devices, once they were attached.
    async fn repair_programs(&mut self, work: &Work) -> Result<()> {
        if !self.state.announced {
            return Ok(());
        }
        let attached = self.dataplane.attachments().context("cannot look for attached programs")?;
        let is_missing = |program, ifindex| !attached.contains(&Served { ifindex, program });
        let missing =
            self.node_programs().iter().filter(|(program, _, ifindex)| is_missing(*program, *ifindex)).count();
        if missing > 0 {
            self.attach_node_programs()?;
            mended(work, Mended::Programs, missing);
        }
        let opened = device::open_overlay(&self.device_config).await.context("cannot bring the overlay up")?;
        mended(work, Mended::Devices, usize::from(opened));
        Ok(())
    }

    /// Every workload's port: there, with its programs and settings, and up. Tells what cannot be mended.
    async fn repair_ports(&mut self, work: &Work) -> Vec<Broken> {
        let looked = match links::list_weft().await {
            Ok(links) => self.guard_ports().await.map(|guarded| (links, guarded)),
            Err(error) => Err(error.into()),
        };
        let (links, Guarded { mended: guarded, closed }) = match looked {
            Ok(looked) => looked,
            Err(error) => return vec![(None, format!("cannot look after the ports of workloads: {error:#}"))],
        };
        mended(work, Mended::Programs, guarded * WORKLOAD_PROGRAMS.len());
        let is_closed = |id: &AttachmentId| closed.iter().any(|(closed, _)| closed.as_ref() == Some(id));
        let mut problems = Vec::new();
        let mut settings = 0;
        for record in self.attachments.attached() {
            let Some(port) = record.link.as_ref().filter(|_| !is_closed(&record.spec.id)) else { continue };
            let name = &port.ifname;
            let found = links.iter().find(|link| link.index == port.ifindex && link.name == *name);
            let result = match found {
                None => Err(anyhow::anyhow!("it is gone; delete its pod, so that it is made anew")),
                Some(link) => mend_port(link).await.map(|changed| settings += usize::from(changed)),
            };
            if let Err(error) = result {
                let id = record.spec.id.clone();
                let problem = format!("link {name} of {id}: {error:#}");
                problems.push((Some(id), problem));
            }
        }
        mended(work, Mended::Ports, settings);
        problems.extend(closed);
        problems
    }
}

/// Brings a port whose programs are attached back to its settings; whether it had others.
async fn mend_port(link: &links::Link) -> Result<bool> {
    let right = links::is_prepared(link) && link.up;
    if !right {
        links::prepare_port(&link.name).await?;
        links::open_port(&link.name).await?;
    }
    Ok(!right)
}

/// Counts and logs what was put back.
pub(super) fn mended(work: &Work, what: Mended, changes: usize) {
    if changes > 0 {
        tracing::warn!(what = what.name(), changes, "mended what others had changed on the node");
        work.mended(what, changes);
    }
}
