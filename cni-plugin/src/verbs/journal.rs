// SPDX-License-Identifier: Apache-2.0
//! What an ADD has applied so far, so that a failure undoes exactly that, in reverse.

use weft_api::AttachmentId;

use crate::{
    agent,
    config::NetworkConfig,
    device_info::DeviceInfo,
    error::CniError,
    netlink::{Netlink, SourceRule},
    record::Folder,
    sandbox::Sandbox,
};

/// One thing that was applied. Addresses and routes need no step: they go with their link.
#[derive(Debug)]
pub(super) enum Step {
    /// The agent was asked to allocate; whether it did is not known when its answer was lost.
    Allocated,
    /// The state file was written.
    Recorded,
    /// The device-info file was written.
    Described(DeviceInfo),
    /// The link of this name was made in the host's namespace.
    Linked(String),
    /// A rule was added in the sandbox: rules stay when their link goes.
    Ruled(SourceRule),
}

/// The steps, in the order in which they were applied.
#[derive(Debug, Default)]
pub(super) struct Journal(Vec<Step>);

impl Journal {
    pub(super) fn push(&mut self, step: Step) {
        self.0.push(step);
    }

    /// Undoes all steps, last first, and goes on after a failure; what failed stands in `error`'s details.
    pub(super) fn undo(
        self,
        mut error: CniError,
        config: &NetworkConfig,
        id: &AttachmentId,
        host: &mut Netlink,
        mut sandbox: Option<&mut Sandbox>,
    ) -> CniError {
        let mut failures = Vec::new();
        for step in self.0.into_iter().rev() {
            let undone = match step {
                Step::Allocated => agent::release(config, id),
                Step::Recorded => Folder::of_records(&config.state_dir)
                    .remove(id)
                    .map_err(|error| CniError::io("the state file", error)),
                Step::Described(info) => info.remove(),
                Step::Linked(name) => delete(host, &name),
                Step::Ruled(rule) => match &mut sandbox {
                    Some(sandbox) => sandbox.netlink.delete_rule(rule).map_err(CniError::from),
                    None => Ok(()),
                },
            };
            failures.extend(undone.err().map(|failure| failure.msg));
        }
        if !failures.is_empty() {
            error.details = format!("undo: {}", failures.join("; "));
        }
        error
    }
}

fn delete(host: &mut Netlink, name: &str) -> Result<(), CniError> {
    match host.link(name)? {
        Some(link) => Ok(host.delete_link(&link)?),
        None => Ok(()),
    }
}
