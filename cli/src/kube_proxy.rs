// SPDX-License-Identifier: Apache-2.0
//! `weft kube-proxy cleanup`: takes what a kube-proxy of any mode left in this network namespace. Observes, plans, applies.
//!
//! Only the rules of iptables need a tool: the kernel is asked for all else, because nodes often have neither `nft` nor
//! `ipset` nor `ipvsadm`. kube-proxy's image brought its own.

mod apply;
mod iptables;
mod kernel;
mod names;
mod netlink;
mod observe;
mod plan;
mod rules;
mod running;
mod servers;

use std::io::Write;

use anyhow::{Result, bail};
use serde::Serialize;

use crate::print::{Output, printable};

/// What became of one thing.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    Removed,
    WouldRemove,
    Failed,
}

/// One thing of kube-proxy's, and what became of it.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
struct Event {
    state: State,
    what: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

impl Event {
    fn failed(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self { state: State::Failed, what: what.into(), why: Some(why.into()) }
    }

    fn line(&self) -> String {
        let Self { state, what, why } = self;
        let verb = match state {
            State::Removed => "removed",
            State::WouldRemove => "would remove",
            State::Failed => "failed to remove",
        };
        printable(&format!("{verb} {what}{}", why.as_ref().map(|why| format!(": {why}")).unwrap_or_default()))
    }
}

/// Removes what a kube-proxy left; with `dry_run` only says what that is. `force`: though a kube-proxy runs.
///
/// # Errors
/// A kube-proxy runs, or something could not be removed; the rest is gone then.
pub(crate) fn cleanup(dry_run: bool, force: bool, output: &mut Output<impl Write>) -> Result<()> {
    running::refuse(dry_run || force)?;
    let (observed, mut failures) = observe::observe()?;
    let (steps, left) = plan::plan(observed);
    failures.extend(left);
    let nothing = steps.is_empty() && failures.is_empty();
    let mut failed = Vec::new();
    let mut tell = |event: Event| -> Result<()> {
        output.print_lines(&[&event], |event| event.line())?;
        if event.state == State::Failed {
            failed.push(event.what);
        }
        Ok(())
    };
    failures.into_iter().try_for_each(&mut tell)?;
    if dry_run {
        let things = steps.iter().flat_map(plan::Step::things);
        things.map(|what| Event { state: State::WouldRemove, what, why: None }).try_for_each(&mut tell)?;
    } else {
        apply::apply(&steps, &mut tell)?;
    }
    if nothing {
        output.remark("nothing of kube-proxy is here")?;
    }
    if !failed.is_empty() {
        bail!("this of kube-proxy's stays: {}", failed.join("; "));
    }
    Ok(())
}
