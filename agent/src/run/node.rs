// SPDX-License-Identifier: Apache-2.0
//! The node: what a turn asks of its parts, in order.

use std::{path::PathBuf, sync::Arc};

use anyhow::{Context as _, Result};
use tokio::{task::block_in_place, time::Instant};
use weft_api::{ApiError, AttachmentId};
use weft_dataplane::{Dataplane, Maps, Origin};

use super::{
    host::Host,
    interim::Mark,
    passes::Passes,
    ports::{Broken, Ports},
    told::{Parts, Told},
};
use crate::{
    apply::{self, flows},
    attachment::pending,
    config::{Config, Source},
    device::Change,
    event::Events,
    model::{Attachment, HashKey},
    plan::Planner,
    serve::{Shared, metrics::Work},
    watch::dir,
};

/// See the module.
pub(super) struct Node {
    config: Arc<Config>,
    dataplane: Dataplane,
    ports: Ports,
    host: Host,
    passes: Passes,
    told: Told,
    mark: Mark,
    /// What the last look at the host could not mend.
    broken_host: Vec<Broken>,
}

impl Node {
    pub(super) fn new(
        config: Arc<Config>,
        dataplane: Dataplane,
        ports: Ports,
        host: Host,
        passes: Passes,
        events: Events,
    ) -> Self {
        let (told, mark) = (Told::new(events), Mark::new(&config.run_dir));
        Self { config, dataplane, ports, host, passes, told, mark, broken_host: Vec::new() }
    }

    pub(super) const fn maps(&self) -> &Arc<Maps> {
        self.dataplane.maps()
    }

    /// The flow events of the programs; once.
    pub(super) fn events(&mut self) -> Result<weft_dataplane::Events, weft_dataplane::Error> {
        self.dataplane.events()
    }

    pub(super) fn pending_dir(&self) -> PathBuf {
        pending::folder(&self.config.state_dir)
    }

    /// The ports, and what carries out what becomes of them.
    pub(super) const fn ports(&mut self) -> (&mut Ports, &mut Dataplane) {
        (&mut self.ports, &mut self.dataplane)
    }

    /// Takes up what an earlier run has left.
    pub(super) async fn adopt(&mut self) -> Result<()> {
        self.save_host_state();
        self.ports.adopt(&mut self.dataplane).await
    }

    /// Goes on with what an earlier agent has left, if that is whole: the node's own programs are attached, and the runtime may
    /// come. Whether it is. An earlier agent of another version, or of a configuration by which the programs do otherwise, has
    /// left nothing of the kind.
    pub(super) async fn goes_on(&mut self) -> Result<bool> {
        let maps = self.maps();
        let is_whole = self.config.source == Source::Kubernetes
            && self.dataplane.report().maps.iter().all(|map| map.origin == Origin::Adopted)
            && self.mark.is_of(HashKey(maps.numbering().get(0)?), &self.config)
            && maps.config().get(0)? == self.host.facts().config
            && !apply::is_amid_a_change(&**maps)?
            && self.ports.are_served()
            && self.dataplane.attachments_of_other_versions()?.is_empty();
        if is_whole {
            tracing::info!("going on with what an earlier agent has left, until the source has told everything");
            self.announce().await?;
        }
        Ok(is_whole)
    }

    /// Ports that wait for their pod, and have nothing to wait for any more: the cluster knows it, or they have none, or
    /// nobody else will tell of it (in a folder, a pod without a manifest is known by its attachment alone; an API server that
    /// is away).
    pub(super) fn known(&self, planner: &Planner) -> Vec<AttachmentId> {
        let silent = matches!(self.config.source, Source::Dir(_)) || planner.snapshot().error.is_some();
        let is_known =
            |record: &Attachment| record.spec.pod.as_ref().is_none_or(|pod| silent || planner.knows_pod(pod));
        let waiting = self.ports.waiting().map(|(record, _)| record);
        waiting.filter(|record| is_known(record)).map(|record| record.spec.id.clone()).collect()
    }

    /// Until when somebody waits for a pod at most.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.ports.waiting().map(|(_, until)| until).min()
    }

    /// Plans and applies everything.
    pub(super) async fn pass(&mut self, shared: &Shared) -> Result<()> {
        let began = Instant::now();
        let result = self.try_pass(shared).await;
        shared.work.passed(began.elapsed());
        if result.is_err() {
            shared.work.failed();
        }
        self.passes.end(&result);
        let (is_told, key) = {
            let planner = shared.planner();
            (planner.snapshot().synced && planner.snapshot().remembered.is_none(), planner.numbers().key)
        };
        if let Err(error) = self.mark.set(is_told && result.is_ok(), key, &self.config) {
            tracing::warn!(%error, "cannot note for the next agent whether the maps are whole");
        }
        result
    }

    async fn try_pass(&mut self, shared: &Shared) -> Result<()> {
        self.passes.begin();
        self.host.follow_addresses(&self.config, shared);
        let followed = self.host.follow_pod_cidrs(&self.config, shared, &mut self.ports).await;
        self.passes.note(followed);
        let found = self.host.find_next_hops(shared).await;
        self.passes.note(found);
        if self.ports.wrote_maps() {
            self.passes.distrust();
        }
        let (maps, ports) = (self.maps().clone(), self.ports.planned());
        block_in_place(|| self.passes.run(shared, &maps, self.host.facts(), &ports))?;
        // What follows is no part of what workloads here need: it is told, and tried again at the next repair.
        let routes = self.host.put_routes(shared).await;
        self.passes.note(routes);
        let told = self.publish_to_folder(shared, &ports);
        self.passes.note(told);
        self.passes.succeed();
        self.announce().await
    }

    /// Where no API server does it: the other agents learn of this node's workloads.
    fn publish_to_folder(&self, shared: &Shared, ports: &[Arc<Attachment>]) -> Result<()> {
        // A folder that is away is nobody's but its owner's to make.
        let is_remembered = shared.planner().snapshot().remembered.is_some();
        match &self.config.source {
            Source::Dir(folder) if !is_remembered => {
                dir::publish(folder, &self.host.record(), ports).context("cannot tell the other nodes")
            }
            _ => Ok(()),
        }
    }

    /// After the first pass, and after one for other devices: the node's own programs, then the runtime may come.
    async fn announce(&mut self) -> Result<()> {
        if self.host.is_announced() {
            return Ok(());
        }
        self.take_over_other_versions().await?;
        self.host.attach_programs(&mut self.dataplane)?;
        self.host.open_overlay().await?;
        let links = self.ports.records().filter_map(|record| Some(record.link.as_ref()?.ifindex));
        self.host.detach_strays(&mut self.dataplane, links)?;
        if self.config.cni.install {
            let path = super::install::install_conflist(&self.config)?;
            tracing::info!(path = %path.display(), "wrote the network configuration");
        }
        self.host.set_announced();
        tracing::info!("ready");
        Ok(())
    }

    /// Once this version's maps are filled, what other ABI versions served is its own.
    async fn take_over_other_versions(&mut self) -> Result<()> {
        // It copies connections: a node may have a million of them.
        let report = block_in_place(|| self.dataplane.take_over_other_versions())
            .context("cannot take over from another version")?;
        if !report.adopted.is_empty() {
            tracing::info!(links = report.adopted.len(), "took over from another version");
            self.ports.forget_again(self.dataplane.maps()).context("cannot forget connections of ports that left")?;
            // Connections that came along count for their ports from now on.
            block_in_place(|| flows::sweep(self.maps())).context("cannot count the connections")?;
        }
        // What was of no use to take over.
        self.ports.look(&mut self.dataplane).await?.tell();
        Ok(())
    }

    /// Ports go on after a pass: they open, or their addresses are free.
    pub(super) async fn settle_ports(&mut self, outcome: Option<&Result<(), ApiError>>) {
        if let Some(outcome) = outcome {
            self.ports.passed(&mut self.dataplane, outcome).await;
        }
        self.ports.forget_flows(&mut self.dataplane).await;
    }

    /// Looks at what has changed and puts back what others changed; whether a pass is due because the node is another now.
    pub(super) async fn repair(&mut self, change: Change, work: &Work) -> bool {
        let Self { dataplane, ports, host, broken_host, .. } = self;
        let mut changed = false;
        if change == Change::Node {
            (*broken_host, changed) = host.repair(dataplane, self.passes.ready(), work).await;
            ports.set_mtu(host.pod_mtu());
        }
        let broken = broken_host.iter().cloned().chain(ports.repair(dataplane, work).await);
        self.told.tell(broken.collect());
        changed
    }

    /// Writes down for the next agent which state of the host this one has published.
    pub(super) fn save_host_state(&mut self) {
        self.host.save_state(&self.config.run_dir);
    }

    /// What was decided by the host's routes is decided anew.
    pub(super) fn move_routes(&self) {
        if let Err(error) = block_in_place(|| apply::move_routes(&**self.maps())) {
            tracing::error!(%error, "cannot move the generation of routes");
        }
    }

    /// Whether a port wants a pass since this was asked last.
    pub(super) fn ports_want_pass(&mut self) -> bool {
        self.ports.want_pass()
    }

    /// Whether the last pass has left something to do.
    pub(super) fn wants_pass(&self) -> bool {
        self.passes.wants_another()
    }

    /// Removes flows that have ended, and programs of devices that are gone.
    pub(super) fn sweep(&self) {
        match block_in_place(|| flows::sweep(self.maps())) {
            Ok(0) => {}
            Ok(removed) => tracing::debug!(removed, "removed idle flow entries"),
            Err(error) => tracing::warn!(%error, "cannot sweep the flow tables"),
        }
        match self.dataplane.remove_defunct_links() {
            Ok(removed) if removed.is_empty() => {}
            Ok(removed) => tracing::info!(?removed, "removed links of programs to devices that are gone"),
            Err(error) => tracing::warn!(%error, "cannot look for links of programs to devices that are gone"),
        }
    }

    /// Publishes what readers see.
    pub(super) fn publish(&mut self, shared: &Shared, goes_on: bool, behind_since: Option<std::time::Instant>) {
        let Self { config, dataplane, ports, host, passes, told, .. } = self;
        told.publish(&Parts { config, dataplane, ports, host, passes, goes_on, behind_since }, shared);
    }
}
