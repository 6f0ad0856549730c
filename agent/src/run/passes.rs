// SPDX-License-Identifier: Apache-2.0
//! The cluster's side of a pass: the plan is made and brought to the maps.

use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};

use anyhow::{Context as _, Result};
use weft_dataplane::Maps;

use crate::{
    apply::Applier,
    heap,
    model::{Attachment, HealthChecks, NodeFacts},
    plan::Versions,
    serve::Shared,
};

/// See the module.
#[derive(Default)]
pub(super) struct Passes {
    applier: Applier,
    /// Which state of the cluster was applied last.
    planned: Option<Versions>,
    /// When one last worked.
    updated: Option<SystemTime>,
    /// What the last one could not do.
    problems: Vec<String>,
    broken_off: BrokenOff,
    /// What load balancers are to be told once it is in the maps.
    checks: HealthChecks,
}

/// Writes of a pass that leaves much memory free: a first one, or one after a list. The largest change of one Service is a fifth
/// of it.
const LARGE: usize = 50_000;

/// Passes in a row that broke off: the next repair tries again.
#[derive(Default)]
pub(super) struct BrokenOff {
    passes: u32,
    /// Why the last one did.
    error: String,
}

/// Passes in a row that may break off before the node is told to be not ready.
const BROKEN_PASSES: u32 = 3;

impl BrokenOff {
    fn count(&mut self, result: &Result<()>) {
        *self = match result {
            Ok(()) => Self::default(),
            Err(error) => Self { passes: self.passes + 1, error: format!("{error:#}") },
        };
    }

    pub(super) const fn passes(&self) -> u32 {
        self.passes
    }

    /// Why the node is not ready for it.
    pub(super) fn failing(&self) -> Option<String> {
        self.problem().filter(|_| self.passes >= BROKEN_PASSES)
    }

    pub(super) fn problem(&self) -> Option<String> {
        let Self { passes, error } = self;
        let times = format!("{passes} {} in a row", if *passes == 1 { "pass" } else { "passes" });
        (*passes > 0).then(|| format!("{times} over the dataplane broke off, it is as it was before: {error}"))
    }
}

impl Passes {
    /// A new pass: what the one before could not do is forgotten.
    pub(super) fn begin(&mut self) {
        self.problems.clear();
    }

    /// Keeps what went wrong as a problem.
    pub(super) fn note(&mut self, result: Result<()>) {
        self.problems.extend(result.err().map(|error| format!("{error:#}")));
    }

    /// The maps are as planned.
    pub(super) fn succeed(&mut self) {
        self.updated = Some(SystemTime::now());
    }

    /// How it ended.
    pub(super) fn end(&mut self, result: &Result<()>) {
        self.broken_off.count(result);
    }

    /// Somebody else has written to the maps.
    pub(super) fn distrust(&mut self) {
        self.applier.forget();
    }

    /// Whether the last one has left something to do.
    pub(super) fn wants_another(&self) -> bool {
        self.broken_off.passes > 0 || !self.problems.is_empty()
    }

    /// Whether one has worked.
    pub(super) const fn ready(&self) -> bool {
        self.updated.is_some()
    }

    /// When one last worked.
    pub(super) const fn updated(&self) -> Option<SystemTime> {
        self.updated
    }

    pub(super) const fn planned(&self) -> Option<Versions> {
        self.planned
    }

    pub(super) const fn broken_off(&self) -> &BrokenOff {
        &self.broken_off
    }

    pub(super) fn problems(&self) -> &[String] {
        &self.problems
    }

    /// Plans for these facts and ports, and applies.
    pub(super) fn run(
        &mut self,
        shared: &Shared,
        maps: &Maps,
        facts: &NodeFacts,
        ports: &[Arc<Attachment>],
    ) -> Result<()> {
        let started = Instant::now();
        let follows = self.applier.follows();
        let room = Applier::room(maps);
        let patch = {
            let mut planner = shared.planner_mut();
            planner.observe(facts, ports.to_vec());
            if !follows {
                planner.distrust();
            }
            let patch = planner.patch(&room);
            self.checks.extend(planner.take_health_checks());
            patch
        };
        shared.work.planned(started.elapsed());
        let started = Instant::now();
        let planner = shared.planner();
        let summary =
            self.applier.patch(maps, planner.desired(), &patch).context("cannot write the dataplane's maps")?;
        let before = self.planned.replace(planner.versions());
        drop(planner);
        shared.checks.put(std::mem::take(&mut self.checks));
        shared.work.applied(started.elapsed(), summary.written + summary.removed);
        if before.is_none() || summary.written + summary.removed > LARGE {
            shared.planner_mut().pack();
            self.applier.pack();
            heap::give_back();
        }
        if !summary.is_unchanged() {
            tracing::debug!(?summary, "applied a plan");
        }
        self.problems.extend(summary.problems);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::BrokenOff;

    #[test]
    fn a_pass_that_breaks_off_is_a_problem_at_once_and_three_in_a_row_end_readiness() {
        let mut broken = BrokenOff::default();
        assert!(broken.problem().is_none() && broken.failing().is_none());
        for passes in 1..=4 {
            broken.count(&Err(anyhow!("map PORTS: refused").context("cannot write the dataplane's maps")));
            let problem = broken.problem().unwrap();
            assert!(problem.starts_with(&passes.to_string()), "{problem}");
            assert!(problem.ends_with("cannot write the dataplane's maps: map PORTS: refused"), "{problem}");
            assert_eq!(broken.failing().is_some(), passes >= 3);
        }
        broken.count(&Ok(()));
        assert!(broken.problem().is_none() && broken.failing().is_none());
    }
}
