// SPDX-License-Identifier: Apache-2.0
//! DEL: idempotent; what is gone already is no error (CNI spec 1.1.0, "DEL").

use weft_api::AttachmentId;

use super::alias;
use crate::{
    agent,
    config::NetworkConfig,
    environment::Environment,
    error::CniError,
    logging,
    netlink::{Link, Netlink},
    record::{Folder, Record},
    request,
    sandbox::{OpenError, Sandbox},
    sandbox_plan::{is_own_table, own_table},
};

/// Removes the attachment that the environment names. Wrong fields of the configuration that DEL does not need are
/// logged and passed over: a pod must be able to go whatever became of its network's configuration.
pub(super) fn run(variable: &dyn Fn(&str) -> Option<String>, stdin: &[u8]) -> Result<(), CniError> {
    let (config, problems) = NetworkConfig::lenient(stdin)?;
    logging::start(&config);
    problems.iter().for_each(|problem| tracing::warn!(%problem, "DEL goes on"));
    let environment = Environment::read_key(variable)?;
    let id = request::attachment_id(&environment, &config)?;
    remove(&config, &id, &environment.netns)
}

/// Removes links, rules, the device-info file, the agent's state and the record of `id`. Goes on after a failure and tells all of them.
///
/// The link goes before its address is free for others.
///
/// # Errors
/// Something is left; the record is kept then, for the next call.
pub(super) fn remove(config: &NetworkConfig, id: &AttachmentId, netns: &str) -> Result<(), CniError> {
    let records = Folder::of_records(&config.state_dir);
    let record: Option<Record> = records.load(id);
    let mut problems = Vec::new();
    problems.extend(remove_links(id, record.as_ref()).err());
    if let Some(record) = &record {
        let netns = if netns.is_empty() { &record.netns } else { netns };
        problems.extend(remove_rules(netns).err());
        problems.extend(record.device_info.as_ref().and_then(|info| info.remove().err()));
    }
    problems.extend(agent::release(config, id).err());
    if problems.is_empty() {
        problems.extend(records.remove(id).err().map(|error| CniError::io("the state file", error)));
    }
    CniError::joined(problems).map_or(Ok(()), Err)
}

/// Removes rules of attachments whose link is gone: the rest of a sandbox's state goes with the link.
fn remove_rules(netns: &str) -> Result<(), CniError> {
    let mut sandbox = match Sandbox::open(netns) {
        Ok(sandbox) => sandbox,
        Err(OpenError::Gone(_)) => return Ok(()),
        Err(OpenError::Wrong(error)) => {
            tracing::warn!(%error, "cannot look for rules in the sandbox");
            return Ok(());
        }
    };
    let tables: Vec<_> = sandbox.netlink.links()?.iter().map(|link| own_table(link.index)).collect();
    let rules = sandbox.netlink.rules()?;
    for rule in rules.into_iter().filter(|rule| is_own_table(rule.table) && !tables.contains(&rule.table)) {
        sandbox.netlink.delete_rule(rule)?;
    }
    Ok(())
}

/// Deletes the host's end, with which the sandbox's end goes, or the tap.
fn remove_links(id: &AttachmentId, record: Option<&Record>) -> Result<(), CniError> {
    let mut host = Netlink::open().map_err(|error| CniError::io("cannot open a netlink socket", error))?;
    let found = match record {
        Some(record) => host.link(&record.host_ifname)?.filter(|link| is_of(link, id)).into_iter().collect(),
        None => with_alias(host.links()?, id),
    };
    for link in found {
        tracing::info!(%id, ifname = link.name, "deleting the link");
        host.delete_link(&link)?;
    }
    Ok(())
}

/// Without an alias the plugin was killed between making the link and naming it; an alias of another attachment says
/// that the name was given to somebody else since.
fn is_of(link: &Link, id: &AttachmentId) -> bool {
    link.alias.as_ref().is_none_or(|found| *found == alias(id))
}

fn with_alias(links: Vec<Link>, id: &AttachmentId) -> Vec<Link> {
    let wanted = alias(id);
    links.into_iter().filter(|link| link.alias.as_ref() == Some(&wanted)).collect()
}
