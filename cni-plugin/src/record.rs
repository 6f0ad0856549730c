// SPDX-License-Identifier: Apache-2.0
//! What the plugin leaves on disk.
//!
//! - `stateDir/<network>.<container>.<ifname>.json`, a [`Record`]: written before ADD makes a link and removed when DEL is
//!   done, so that DEL, CHECK and GC know the host's link also while the agent is away.
//! - `pendingDir/<network>.<container>.<ifname>.json`, a [`weft_api::AttachmentId`]: a release that the agent has not
//!   heard of yet. The agent finishes and removes it.
//!
//! A `.` inside of a part is written as `%2E`, so that no two attachments share a file.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use weft_api::{AttachmentId, PortKind};

use crate::{device_info::DeviceInfo, file};

/// One attachment as the plugin made it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Which attachment.
    pub id: AttachmentId,
    /// How it is plugged in.
    pub port: PortKind,
    /// `CNI_NETNS` of its ADD; may be empty.
    pub netns: String,
    /// The host's end of the veth, or the tap.
    pub host_ifname: String,
    /// The device-info file of a vhost-user port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_info: Option<DeviceInfo>,
}

/// A folder with one JSON file per attachment.
#[derive(Clone, Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    /// Must a file survive a power cut? Links do not, addresses do.
    durable: bool,
}

impl Folder {
    /// The folder of [`Record`]s.
    pub(crate) fn of_records(path: &Path) -> Self {
        Self { path: path.to_owned(), durable: false }
    }

    /// The folder of releases that wait for the agent.
    pub(crate) fn of_pending(path: &Path) -> Self {
        Self { path: path.to_owned(), durable: true }
    }

    /// Writes the file of `id`: readers see the old one or the whole new one.
    pub(crate) fn save<T: Serialize>(&self, id: &AttachmentId, content: &T) -> io::Result<()> {
        let path = self.path_of(id);
        let written = file::replace(&path, |file| {
            file.write_all(&serde_json::to_vec(content)?)?;
            if self.durable { file.sync_all() } else { Ok(()) }
        });
        written.map_err(naming("write", &path))
    }

    /// Reads the file of `id`. One that is torn is like one that is not there: DEL must go on.
    pub(crate) fn load<T: DeserializeOwned>(&self, id: &AttachmentId) -> Option<T> {
        file::read(&self.path_of(id))
    }

    /// Is there a file of `id`?
    pub(crate) fn contains(&self, id: &AttachmentId) -> bool {
        self.path_of(id).exists()
    }

    /// Removes the file of `id`, also what a killed plugin has half written; one that is gone is no error.
    pub(crate) fn remove(&self, id: &AttachmentId) -> io::Result<()> {
        let path = self.path_of(id);
        file::remove(&path).map_err(naming("remove", &path))
    }

    /// Removes what killed plugins have half written, of any attachment.
    pub(crate) fn sweep(&self) -> io::Result<()> {
        file::sweep(&self.path).map_err(naming("sweep", &self.path))
    }

    /// All files that can be read.
    pub(crate) fn list<T: DeserializeOwned>(&self) -> Vec<T> {
        let entries = fs::read_dir(&self.path).into_iter().flatten().flatten();
        let files = entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "json"));
        files.filter_map(|path| file::read(&path)).collect()
    }

    fn path_of(&self, id: &AttachmentId) -> PathBuf {
        self.path.join(id.file_name())
    }
}

fn naming(call: &'static str, path: &Path) -> impl FnOnce(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("cannot {call} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use weft_api::{AttachmentId, PortKind};

    use super::{DeviceInfo, Folder, Record};

    fn id(network: &str, container_id: &str) -> AttachmentId {
        AttachmentId { network: network.into(), container_id: container_id.into(), ifname: "eth0".into() }
    }

    #[test]
    fn a_record_comes_back_until_it_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::of_records(&dir.path().join("new"));
        let record = Record {
            id: id("n", "c"),
            port: PortKind::VhostUser,
            netns: String::new(),
            host_ifname: "weft1".into(),
            device_info: Some(DeviceInfo { file: "/f".into(), socket: "/s".into() }),
        };
        folder.save(&record.id, &record).unwrap();
        assert_eq!(folder.load::<Record>(&record.id), Some(record.clone()));
        assert_eq!(folder.list::<Record>(), std::slice::from_ref(&record));
        folder.remove(&record.id).unwrap();
        folder.remove(&record.id).unwrap();
        assert!(folder.list::<Record>().is_empty() && !folder.contains(&record.id));

        std::fs::write(dir.path().join("new/.n.c.eth0.json.tmp"), b"{").unwrap();
        folder.remove(&record.id).unwrap();
        assert_eq!(std::fs::read_dir(dir.path().join("new")).unwrap().count(), 0);
        std::fs::write(dir.path().join("new/.n.other.eth0.json.tmp"), b"{").unwrap();
        folder.sweep().unwrap();
        assert_eq!(std::fs::read_dir(dir.path().join("new")).unwrap().count(), 0);
    }

    #[test]
    fn a_torn_file_is_like_none() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("n.c.eth0.json"), b"{").unwrap();
        assert_eq!(Folder::of_records(dir.path()).load::<Record>(&id("n", "c")), None);
    }
}
