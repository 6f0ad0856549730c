// SPDX-License-Identifier: Apache-2.0
//! A control group of its own for each device: `weft/vhost-<tap>` at the root of every hierarchy.
//!
//! A container runtime ends what is in a container's control groups, and systemd what is in a service's. A device is in
//! neither, so it outlives the agent's container or service. Both layouts of cgroups(7) are served: one hierarchy of version
//! 2, or several of version 1 beside it.
//!
//! There is no memory limit on the group: a guest's page is charged to whoever touches it first, and for a receive buffer
//! that is often the device. The device's own memory has a limit in `process` instead.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use nix::{
    sched::{CloneFlags, setns},
    sys::statfs::{CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, statfs},
};
use tokio::time::sleep;

/// Where every distribution mounts the hierarchies, itself or below.
const MOUNTED: &str = "/sys/fs/cgroup";
/// The group of all devices.
const FOLDER: &str = "weft";
/// Before the tap's name.
const PREFIX: &str = "vhost-";
/// Tries to remove a group: the kernel counts its last process for a moment after its end.
const REMOVE_TRIES: u32 = 100;
/// Between two of them.
const REMOVE_PAUSE: Duration = Duration::from_millis(20);

/// The root of the hierarchy of version 2, as this process sees it; where distributions mount it, if it sees none.
#[must_use]
pub fn root() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mounts: Vec<Mount<'_>> = mounts.lines().filter_map(Mount::parse).filter(Mount::shows_groups).collect();
    mounts.iter().rfind(|mount| mount.version_2).map_or(MOUNTED, |mount| mount.point).into()
}

/// The control groups of this node's devices. Clones share what has been warned of.
#[derive(Clone, Debug, Default)]
pub struct Cgroups {
    /// [`FOLDER`] in each hierarchy that can be written.
    folders: Vec<PathBuf>,
    warned: Arc<AtomicBool>,
}

impl Cgroups {
    /// None: devices stay in the agent's own groups.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Those of the hierarchies that this process sees; warns where devices would end with the agent's container.
    #[must_use]
    pub fn find() -> Self {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let (found, missing) = mount_points(&own, &mounts);
        if !missing.is_empty() {
            tracing::debug!(hierarchies = ?missing, "hierarchies of control groups that are not mounted");
        }
        let cgroups = Self::below(found);
        if cgroups.folders.is_empty() {
            tracing::warn!(
                "no control groups can be made below {MOUNTED}: devices of vhost-user ports end with the agent's container \
                 or service"
            );
        }
        cgroups
    }

    /// Those below the given mount points; what cannot be written is warned of and left out.
    #[must_use]
    pub fn below(mount_points: Vec<PathBuf>) -> Self {
        let made = |mount: PathBuf| {
            let folder = mount.join(FOLDER);
            match make(&folder) {
                Ok(()) => Some(folder),
                Err(error) => {
                    tracing::warn!(cgroup = %folder.display(), %error, "cannot make the control group of devices");
                    None
                }
            }
        };
        Self { folders: mount_points.into_iter().filter_map(made).collect(), warned: Arc::default() }
    }

    /// Makes the groups of the device on `tap`; a process that writes `0` to each descriptor is in them.
    pub(super) fn open(&self, tap: &str) -> Vec<OwnedFd> {
        if self.folders.is_empty() {
            return Vec::new();
        }
        in_the_hosts_namespace(|| {
            let open = |folder: &PathBuf| {
                let group = folder.join(format!("{PREFIX}{tap}"));
                let opened = make(&group).and_then(|()| File::options().write(true).open(group.join("cgroup.procs")));
                opened.map_err(|error| self.warn_once(&group.display().to_string(), &error.to_string())).ok()
            };
            self.folders.iter().filter_map(open).map(OwnedFd::from).collect()
        })
    }

    /// Warns, once, if the device `pid` on `tap` is still in a group of somebody else.
    pub(super) fn confirm(&self, pid: u32, tap: &str) {
        if self.folders.is_empty() {
            return;
        }
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let left_in = strange_groups(&groups, tap);
        if !left_in.is_empty() {
            self.warn_once(&left_in.join(" "), "a device could not leave it, and may end with it");
        }
    }

    fn warn_once(&self, group: &str, problem: &str) {
        if !self.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(cgroup = group, problem, "control groups of devices; said once");
        }
    }

    /// Removes the groups of a device that has ended.
    pub(super) async fn remove(&self, tap: &str) {
        remove(self.folders.iter().map(|folder| folder.join(format!("{PREFIX}{tap}"))).collect()).await;
    }

    /// Removes the groups of all devices but those on the `wanted` taps.
    pub(super) async fn sweep(&self, wanted: &BTreeSet<&str>) {
        let entries = self.folders.iter().flat_map(|folder| fs::read_dir(folder).into_iter().flatten().flatten());
        let unwanted = entries.filter(|entry| {
            let name = entry.file_name();
            let tap = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
            tap.is_some_and(|tap| !wanted.contains(tap))
        });
        remove(unwanted.map(|entry| entry.path()).collect()).await;
    }

    /// Removes everything, after the last device.
    pub(super) async fn remove_all(&self) {
        self.sweep(&BTreeSet::new()).await;
        remove(self.folders.clone()).await;
    }
}

/// Makes a group, if need be. A cpuset of version 1 starts empty and takes no process before it has processors and memory.
fn make(group: &Path) -> io::Result<()> {
    match fs::create_dir(group) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    for file in ["cpuset.cpus", "cpuset.mems"].map(|file| group.join(file)) {
        let parent = group.parent().and_then(|parent| Some(parent.join(file.file_name()?)));
        // Of version 2 these files may be empty, and mean the parent's.
        if let Some(value) = parent.and_then(|parent| fs::read_to_string(parent).ok())
            && !value.trim().is_empty()
            && fs::read_to_string(&file).is_ok_and(|own| own.trim().is_empty())
        {
            fs::write(&file, value.trim())?;
        }
    }
    Ok(())
}

/// Removes groups, those that are busy again and again for a while.
async fn remove(mut groups: Vec<PathBuf>) {
    for tries_left in (0..REMOVE_TRIES).rev() {
        groups.retain(|group| is_busy(group, tries_left == 0));
        if groups.is_empty() {
            return;
        }
        sleep(REMOVE_PAUSE).await;
    }
}

/// Whether a group could not be removed and may be later; warns of every other failure, and of this one if it is the `last`.
fn is_busy(group: &Path, last: bool) -> bool {
    match fs::remove_dir(group) {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy && !last => true,
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(cgroup = %group.display(), %error, "cannot remove a device's control group");
            false
        }
        _ => false,
    }
}

/// Runs `work` in the control group namespace of process 1: with `nsdelegate` a process moves only between groups that the
/// namespace shows in which `cgroup.procs` was opened, and a container's shows its own only. Where that namespace cannot be
/// entered (no `hostPID`, no `SYS_PTRACE`), it stays in this one.
fn in_the_hosts_namespace<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let run = || {
        let entered =
            File::open("/proc/1/ns/cgroup").and_then(|namespace| Ok(setns(namespace, CloneFlags::CLONE_NEWCGROUP)?));
        if let Err(error) = entered {
            tracing::debug!(%error, "stays in its own control group namespace");
        }
        work()
    };
    match std::thread::scope(|scope| scope.spawn(run).join()) {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// The mount points of the hierarchies that a process with `own` as its /proc/PID/cgroup is in, and the names of those
/// without one.
fn mount_points(own: &str, mountinfo: &str) -> (Vec<PathBuf>, Vec<String>) {
    let mounts: Vec<Mount<'_>> = mountinfo.lines().filter_map(Mount::parse).filter(Mount::shows_groups).collect();
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for hierarchy in own.lines().filter_map(|line| line.split(':').nth(1)) {
        // Of two mounts the later one may hide the earlier.
        match mounts.iter().rfind(|mount| mount.is_of(hierarchy)) {
            Some(mount) => found.push(mount.point.into()),
            None => missing.push(hierarchy.to_owned()),
        }
    }
    (found, missing)
}

/// A mounted hierarchy: proc_pid_mountinfo(5).
struct Mount<'a> {
    point: &'a str,
    version_2: bool,
    options: Vec<&'a str>,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (left, right) = line.split_once(" - ")?;
        let point = left.split(' ').nth(4).filter(|point| Path::new(point).starts_with(MOUNTED))?;
        let mut right = right.split(' ');
        let version_2 = match right.next()? {
            "cgroup2" => true,
            "cgroup" => false,
            _ => return None,
        };
        Some(Self { point, version_2, options: right.nth(1)?.split(',').collect() })
    }

    /// Whether the mount is what is at its point: another one may hide it.
    fn shows_groups(&self) -> bool {
        let expected = if self.version_2 { CGROUP2_SUPER_MAGIC } else { CGROUP_SUPER_MAGIC };
        statfs(self.point).is_ok_and(|found| found.filesystem_type() == expected)
    }

    /// Whether it is of the hierarchy with these controllers, none for version 2.
    fn is_of(&self, controllers: &str) -> bool {
        match controllers {
            "" => self.version_2,
            _ => !self.version_2 && controllers.split(',').all(|controller| self.options.contains(&controller)),
        }
    }
}

/// What a device on `tap` with `groups` as its /proc/PID/cgroup is in that is not its own.
fn strange_groups<'a>(groups: &'a str, tap: &str) -> Vec<&'a str> {
    let own = format!("/{FOLDER}/{PREFIX}{tap}");
    groups.lines().filter(|line| !line.ends_with(&own)).collect()
}

#[cfg(test)]
mod tests {
    use super::{Mount, strange_groups};

    #[test]
    fn hierarchies_are_found_by_their_controllers() {
        let mount = |line| Mount::parse(line).unwrap();
        let cpu = mount("31 30 0:26 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct");
        assert!(cpu.is_of("cpu,cpuacct") && cpu.is_of("cpuacct,cpu") && !cpu.is_of("memory") && !cpu.is_of(""));
        let systemd = mount("32 30 0:27 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd");
        assert!(systemd.is_of("name=systemd") && !systemd.is_of("systemd"));
        let unified = mount("33 30 0:28 / /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate");
        assert!(unified.is_of("") && !unified.is_of("cpu"));
        for other in ["22 1 8:1 / / rw - ext4 /dev/root rw", "40 1 0:9 / /mnt rw - cgroup2 cgroup2 rw", "nonsense"] {
            assert!(Mount::parse(other).is_none(), "{other}");
        }
    }

    #[test]
    fn a_group_that_is_not_the_devices_is_told() {
        let groups = "4:memory:/weft/vhost-t1\n2:cpu:/kubepods/pod1\n0::/../weft/vhost-t1\n";
        assert_eq!(strange_groups(groups, "t1"), ["2:cpu:/kubepods/pod1"]);
        assert_eq!(strange_groups(groups, "t2").len(), 3);
    }
}
