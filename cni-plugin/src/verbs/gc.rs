// SPDX-License-Identifier: Apache-2.0
//! GC: removes every attachment of the network that the runtime does not know (CNI spec 1.1.0, "GC").

use std::collections::BTreeSet;

use weft_api::AttachmentId;

use super::del;
use crate::{
    agent::{self, PATIENCE},
    config::NetworkConfig,
    error::{CniError, Code},
    netlink::Netlink,
    record::{Folder, Record},
};

/// Removes what is not in `cni.dev/valid-attachments`, goes on after a failure, and tells all of them.
pub(super) fn run(config: &NetworkConfig) -> Result<(), CniError> {
    let valid = valid(config)?;
    let kept: BTreeSet<&AttachmentId> = valid.iter().collect();
    let mut problems = sweep(config);
    for (id, netns) in stale(config, &kept)? {
        tracing::info!(%id, "removing an attachment that the runtime does not know");
        problems.extend(del::remove(config, &id, &netns).err());
    }
    let collected = agent::connect(config, PATIENCE)
        .map_err(|error| CniError::from_agent(&error, false))
        .and_then(|mut client| agent::collect_garbage(&mut client, &config.name, valid));
    problems.extend(collected.err());
    CniError::joined(problems).map_or(Ok(()), Err)
}

/// Removes what killed plugins have half written: the runtime may never name their attachments again.
fn sweep(config: &NetworkConfig) -> Vec<CniError> {
    let folders = [Folder::of_records(&config.state_dir), Folder::of_pending(&config.pending_dir)];
    let swept = folders.iter().map(Folder::sweep);
    swept.filter_map(|swept| swept.err().map(|error| CniError::new(Code::Io, error.to_string()))).collect()
}

/// Without the list everything would be garbage: refused.
fn valid(config: &NetworkConfig) -> Result<Vec<AttachmentId>, CniError> {
    let listed = config.valid_attachments.as_ref().ok_or_else(|| {
        CniError::config("field 'cni.dev/valid-attachments' is missing; the runtime must give it for GC")
    })?;
    let ids = listed.iter().map(|entry| AttachmentId {
        network: config.name.clone(),
        container_id: entry.container_id.clone(),
        ifname: entry.ifname.clone(),
    });
    Ok(ids.collect())
}

/// Attachments of the network with a record or a link that are not valid, with their namespace where it is known.
fn stale(config: &NetworkConfig, valid: &BTreeSet<&AttachmentId>) -> Result<Vec<(AttachmentId, String)>, CniError> {
    let records: Vec<Record> = Folder::of_records(&config.state_dir).list();
    let mut found: Vec<_> = records.into_iter().map(|record| (record.id, record.netns)).collect();
    let recorded: BTreeSet<_> = found.iter().map(|(id, _)| id.clone()).collect();
    let mut host = Netlink::open().map_err(|error| CniError::io("cannot open a netlink socket", error))?;
    let linked = host.links()?.into_iter().filter_map(|link| of_alias(&link.alias?));
    found.extend(linked.filter(|id| !recorded.contains(id)).map(|id| (id, String::new())));
    found.retain(|(id, _)| id.network == config.name && !valid.contains(id));
    Ok(found)
}

/// The attachment that `alias` names; no part of an id has a '/'.
fn of_alias(alias: &str) -> Option<AttachmentId> {
    let mut parts = alias.strip_prefix("weft:")?.split('/').map(str::to_owned);
    let id = AttachmentId { network: parts.next()?, container_id: parts.next()?, ifname: parts.next()? };
    parts.next().is_none().then_some(id)
}

#[cfg(test)]
mod tests {
    use super::of_alias;
    use crate::verbs::alias;

    #[test]
    fn an_alias_names_its_attachment() {
        let id = of_alias("weft:net/c1/eth0").unwrap();
        assert_eq!(alias(&id), "weft:net/c1/eth0");
        for other in ["", "weft:", "weft:a/b", "weft:a/b/c/d", "uplink"] {
            assert!(of_alias(other).is_none(), "{other}");
        }
    }
}
