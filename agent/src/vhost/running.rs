// SPDX-License-Identifier: Apache-2.0
//! Devices that run on this node, recorded or not, by their command lines: an agent that is killed after it has started a
//! device and before it has recorded it leaves one that only this finds.

use std::{collections::BTreeMap, fs, path::Path};

use super::spec::{SOCKET_FLAG, socket_path};

/// The processes of devices, by the tap that they serve.
pub(super) type Running = BTreeMap<String, Vec<u32>>;

/// Devices with their files in `folder`, in this process's network namespace: another node's, on a machine that simulates
/// several, have theirs in a folder of the same name.
pub(super) fn find(folder: &Path) -> Running {
    let mut running = Running::new();
    let Ok(network) = fs::read_link("/proc/thread-self/ns/net") else { return running };
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Some(tap) = tap(pid, folder) else { continue };
        if fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|other| other == network) {
            running.entry(tap).or_default().push(pid);
        }
    }
    running
}

/// The tap of a process that is a device with its files in `folder`.
pub(super) fn tap(pid: u32, folder: &Path) -> Option<String> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    tap_of(&line, folder)
}

fn tap_of(line: &[u8], folder: &Path) -> Option<String> {
    let arguments = line.split(|byte| *byte == 0).filter_map(|argument| std::str::from_utf8(argument).ok());
    let socket = arguments.filter_map(|argument| argument.strip_prefix(SOCKET_FLAG)).map(Path::new).next()?;
    let tap = socket.parent()?.file_name()?.to_str()?;
    (socket == socket_path(folder, tap)).then(|| tap.to_owned())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::tap_of;

    #[test]
    fn a_device_is_known_by_its_socket() {
        let folder = Path::new("/run/weft/vhost");
        let tap = |line: &str| tap_of(line.replace(' ', "\0").as_bytes(), folder);
        assert_eq!(tap("/bin/weft-vhost --socket=/run/weft/vhost/weft1/vhost.sock --tap=weft1").unwrap(), "weft1");
        for other in [
            "",
            "/bin/weft-vhost",
            "/bin/weft-vhost --socket /run/weft/vhost/weft1/vhost.sock",
            "/bin/weft-vhost --socket=/run/vm1.sock",
            "/bin/weft-vhost --socket=/run/weft/vhost/vhost.sock",
            "/bin/weft-vhost --socket=/run/weft/vhost/weft1/control.sock",
            "/bin/weft-vhost --socket=/run/other/vhost/weft1/vhost.sock",
        ] {
            assert_eq!(tap(other), None, "{other}");
        }
    }
}
