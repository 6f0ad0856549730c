// SPDX-License-Identifier: Apache-2.0
//! The device-info file of a vhost-user port: by it Multus tells the pod's annotations, and so the VMM, where the socket is.
//!
//! Source: Network Plumbing Working Group, Device Information Specification 1.1.0, sections 3.1.5 (the map), 4.2 and 5.1 (the
//! file, the `CNIDeviceInfoFile` capability).

use std::{
    fs::{self, Permissions},
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{error::CniError, file};

/// The version of the specification that the file follows.
const VERSION: &str = "1.1.0";
/// The workload's role: the host makes the socket, the VMM connects to it (section 3.1.5.1).
const MODE: &str = "client";
/// Longest name of the file; the kernel takes 255 bytes, and its name while it is replaced is a little longer.
const NAME_MAX: usize = 240;

/// A device-info file that an attachment has, or is about to have.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct DeviceInfo {
    /// Where it is: the runtime's `CNIDeviceInfoFile`.
    pub file: PathBuf,
    /// The socket that it names.
    pub socket: String,
}

impl DeviceInfo {
    /// Writes the file: readers see none or the whole of it. Everybody may read it, as Multus has it.
    ///
    /// # Errors
    /// What the system said, with the file's name; nothing is left then.
    pub(crate) fn write(&self) -> Result<(), CniError> {
        let written = file::replace(&self.file, |file| {
            file.write_all(self.content().to_string().as_bytes())?;
            file.set_permissions(Permissions::from_mode(0o644))
        });
        written
            .map_err(|error| CniError::io(format!("cannot write the device-info file {}", self.file.display()), error))
    }

    /// Removes the file, also what a killed plugin has half written. One that is gone is fine, and one that somebody else has
    /// written stays.
    ///
    /// # Errors
    /// What the system said, with the file's name.
    pub(crate) fn remove(&self) -> Result<(), CniError> {
        let own = file::read::<Value>(&self.file).is_some_and(|content| content == self.content());
        let removed = if own { file::remove(&self.file) } else { file::settle(&self.file) };
        removed
            .map_err(|error| CniError::io(format!("cannot remove the device-info file {}", self.file.display()), error))
    }

    /// What CHECK finds wrong with the file.
    pub(crate) fn finding(&self) -> Option<String> {
        let file = self.file.display();
        match file::read::<Value>(&self.file) {
            None => Some(format!("the device-info file {file} is missing or not JSON")),
            Some(found) if found != self.content() => {
                Some(format!("the device-info file {file} does not name the socket {}", self.socket))
            }
            Some(_) => None,
        }
    }

    fn content(&self) -> Value {
        json!({ "type": "vhost-user", "version": VERSION, "vhost-user": { "mode": MODE, "path": self.socket } })
    }
}

/// Whether `file` can be the path of a device-info file; if not, what it must be.
pub(crate) fn check_path(file: &Path) -> Result<(), &'static str> {
    let plain = file.components().all(|part| !matches!(part, std::path::Component::ParentDir));
    let named = file.file_name().is_some_and(|name| name.len() <= NAME_MAX)
        && !file.as_os_str().as_encoded_bytes().ends_with(b"/");
    if file.is_absolute() && plain && named {
        return Ok(());
    }
    Err("the absolute path of a file, without '..' and with a name of at most 240 bytes")
}

/// Refuses a file that is there before ADD and not left from an earlier try, `earlier`, at the same attachment: with it a
/// device plugin describes a device of its own, which is not the one that Weft makes.
///
/// # Errors
/// Names the file and the fix.
pub(crate) fn refuse_foreign(file: &Path, earlier: Option<&DeviceInfo>) -> Result<(), CniError> {
    let own = earlier.is_some_and(|earlier| earlier.file == file && earlier.finding().is_none());
    if own || fs::symlink_metadata(file).is_err() {
        return Ok(());
    }
    Err(CniError::config(format!(
        "field 'runtimeConfig.CNIDeviceInfoFile': {} is there already; weft makes the socket itself, so remove the file, or \
         the device plugin's resourceName from the network attachment definition",
        file.display()
    )))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

    use serde_json::{Value, json};

    use super::{DeviceInfo, check_path, refuse_foreign};

    #[test]
    fn the_file_is_that_of_the_specification() {
        let dir = tempfile::tempdir().unwrap();
        let info = DeviceInfo { file: dir.path().join("devinfo/cni/net-c1-net1"), socket: "/run/s.sock".into() };
        info.write().unwrap();
        let found: Value = serde_json::from_slice(&fs::read(&info.file).unwrap()).unwrap();
        let expected =
            json!({"type": "vhost-user", "version": "1.1.0", "vhost-user": {"mode": "client", "path": "/run/s.sock"}});
        assert_eq!(found, expected);
        assert_eq!(fs::metadata(&info.file).unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(info.finding(), None);
        info.remove().unwrap();
        info.remove().unwrap();
        assert_eq!(fs::read_dir(info.file.parent().unwrap()).unwrap().count(), 0);
        assert!(info.finding().unwrap().contains("missing"));
    }

    #[test]
    fn what_somebody_else_wrote_is_refused_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let info = DeviceInfo { file: dir.path().join("f"), socket: "/run/s.sock".into() };
        refuse_foreign(&info.file, None).unwrap();
        info.write().unwrap();
        refuse_foreign(&info.file, Some(&info)).unwrap();
        assert!(refuse_foreign(&info.file, None).unwrap_err().msg.contains("CNIDeviceInfoFile"));
        let other = DeviceInfo { socket: "/run/other.sock".into(), ..info.clone() };
        assert!(refuse_foreign(&info.file, Some(&other)).is_err());
        assert!(other.finding().unwrap().contains("/run/other.sock"));
        fs::write(dir.path().join(".f.tmp"), "{").unwrap();
        other.remove().unwrap();
        assert!(info.file.exists() && !dir.path().join(".f.tmp").exists());
    }

    #[test]
    fn a_file_that_cannot_be_written_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let info = DeviceInfo { file: dir.path().join("f"), socket: "/s".into() };
        fs::create_dir(&info.file).unwrap();
        assert!(info.write().unwrap_err().msg.contains("cannot write the device-info file"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn paths_that_are_no_file_are_refused() {
        check_path(Path::new("/var/run/k8s.cni.cncf.io/devinfo/cni/net-c1-net1")).unwrap();
        let long = format!("/{}", "n".repeat(241));
        for path in ["", "f", "/", "/a/../f", "/a/", &long] {
            assert!(check_path(Path::new(path)).is_err(), "{path}");
        }
    }
}
