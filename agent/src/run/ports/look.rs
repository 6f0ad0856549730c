// SPDX-License-Identifier: Apache-2.0
//! Looks at ports: whether they are there, with their programs and settings, and up. A port that has lost its programs is down
//! until it has them again; one that cannot have them stays down alone.

use anyhow::{Context as _, Result};
use weft_api::{ApiError, AttachmentId, PortLink};
use weft_dataplane::{Attachment as Served, Dataplane};

use super::{
    Ports, WORKLOAD_PROGRAMS,
    effects::{has_entry, is_wanted},
};
use crate::{
    attachment::life::{Event, Life, Seen},
    device::links::{self, Link},
    run::told::mended,
    serve::metrics::{Mended, Work},
};

/// A problem of the node, and the port that has it, if one has.
pub(in crate::run) type Broken = (Option<AttachmentId>, String);

/// What came of a look.
#[derive(Default)]
pub(in crate::run) struct Looked {
    /// How many ports have got their programs back.
    armed: usize,
    /// How many have got their settings back.
    mended: usize,
    /// What cannot be mended.
    broken: Vec<Broken>,
}

/// What is on the node.
struct Present {
    links: Vec<Link>,
    own: Vec<Served>,
}

impl Ports {
    /// A look that counts and logs what it mends; tells what cannot be.
    pub(in crate::run) async fn repair(&mut self, dataplane: &mut Dataplane, work: &Work) -> Vec<Broken> {
        match self.look(dataplane).await {
            Ok(looked) => {
                mended(work, Mended::Programs, looked.armed * WORKLOAD_PROGRAMS.len());
                mended(work, Mended::Ports, looked.mended);
                looked.broken
            }
            Err(error) => vec![(None, format!("cannot look after the ports of workloads: {error:#}"))],
        }
    }

    /// Looks at every port of the plan, and mends what can be.
    ///
    /// # Errors
    /// What there is cannot be told.
    pub(in crate::run) async fn look(&mut self, dataplane: &mut Dataplane) -> Result<Looked> {
        let links = links::list_weft().await.context("cannot list links")?;
        let own = dataplane.attachments().context("cannot look for attached programs")?;
        self.others = dataplane.attachments_of_other_versions().context("cannot look for other versions")?;
        let present = Present { links, own };
        let mut looked = Looked::default();
        let ports = self.lives.iter().filter(|(_, life)| life.is_planned());
        let ports: Vec<_> = ports.filter_map(|(id, life)| Some((id.clone(), life.link()?.clone()))).collect();
        for (id, link) in ports {
            let result = self.look_at(dataplane, &present, &id, &link, &mut looked).await;
            let problem = result.map_err(|error| format!("link {} of {id}: {error}", link.ifname)).err();
            looked.broken.extend(problem.map(|problem| (Some(id), problem)));
        }
        self.others.clear();
        let stuck: Vec<_> = self.lives.iter().filter(|(_, life)| life.is_stuck()).map(|(id, _)| id.clone()).collect();
        for id in stuck {
            let removed = self.try_drive(dataplane, &id, Event::Looked(Seen::default())).await;
            let problem =
                removed.err().map(|error| format!("what is left of {id} cannot be removed: {}", error.message));
            looked.broken.extend(problem.map(|problem| (None, problem)));
        }
        Ok(looked)
    }

    async fn look_at(
        &mut self,
        dataplane: &mut Dataplane,
        present: &Present,
        id: &AttachmentId,
        link: &PortLink,
        looked: &mut Looked,
    ) -> Result<(), String> {
        let was_served = matches!(self.lives.get(id), Some(Life::Served { .. }));
        let seen = self.see(dataplane, present, link, was_served).map_err(|error| error.message)?;
        if !seen.is_there {
            return Err("it is gone; delete its pod, so that it is made anew".to_owned());
        }
        if !seen.programs {
            tracing::warn!(ifname = link.ifname, "a port has lost its programs");
        }
        self.try_drive(dataplane, id, Event::Looked(seen)).await.map_err(|error| error.message)?;
        looked.armed += usize::from(!seen.programs);
        looked.mended += usize::from(was_served && seen.programs && !seen.right);
        Ok(())
    }

    fn see(
        &self,
        dataplane: &Dataplane,
        present: &Present,
        link: &PortLink,
        was_served: bool,
    ) -> Result<Seen, ApiError> {
        let found = present.links.iter().find(|found| found.index == link.ifindex && found.name == link.ifname);
        let wanted = WORKLOAD_PROGRAMS.map(|program| Served { ifindex: link.ifindex, program });
        let programs = wanted.iter().all(|wanted| present.own.contains(wanted) || self.others.contains(wanted));
        let is_others = wanted.iter().all(|wanted| self.others.contains(wanted));
        let entry = (was_served && programs) || is_others || has_entry(dataplane.maps(), link)?;
        let right = found.is_some_and(|found| links::is_prepared(found) && found.up);
        Ok(Seen { is_there: found.is_some(), programs, entry, right })
    }

    /// Takes up the ports of an earlier run.
    ///
    /// # Errors
    /// What there is cannot be told.
    pub(in crate::run) async fn adopt(&mut self, dataplane: &mut Dataplane) -> Result<()> {
        let present = links::list_weft().await.context("cannot list links")?;
        let is_there =
            |link: &PortLink| present.iter().any(|found| found.index == link.ifindex && found.name == link.ifname);
        let records: Vec<_> = self.records().cloned().collect();
        for record in records {
            let (id, is_there) = (record.spec.id.clone(), record.link.as_ref().is_some_and(is_there));
            let is_wanted = is_wanted(&record.spec.netns);
            if !is_there && !is_wanted {
                tracing::info!(%id, "releasing an attachment whose link and network namespace are gone");
            }
            let found = Event::Found { link: record.link.clone(), is_there, is_wanted };
            if let Err(error) = self.try_drive(dataplane, &id, found).await {
                tracing::warn!(%id, %error, "cannot take up an attachment of an earlier run");
            }
        }
        self.forget_flows(dataplane).await;
        self.look(dataplane).await?.tell();
        self.devices.sweep().await.context("cannot look for devices of an earlier run")
    }
}

impl Looked {
    /// Logs the ports that are closed. The next look at the node tries again, and `weft status` names them.
    pub(in crate::run) fn tell(&self) {
        for (_, problem) in &self.broken {
            tracing::warn!(problem, "a port is closed");
        }
    }
}
