// SPDX-License-Identifier: Apache-2.0

//! One cgroup per node in every hierarchy of the machine, so that a node sees its own cgroup root and `down` ends exactly what
//! ran in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::command::wait_until;

/// Where the machine mounts its cgroup hierarchies.
const ROOT: &str = "/sys/fs/cgroup";

/// The child of a node's cgroup that takes its processes where version 2 is all there is.
const LEAF: &str = "system";

/// One mounted cgroup hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hierarchy {
    pub(crate) mount_point: PathBuf,
    /// `cgroup` (version 1) or `cgroup2`.
    pub(crate) file_system: String,
    /// What `mount -o` needs to get this hierarchy again: its controllers, or `name=...`. Empty for version 2.
    pub(crate) options: String,
}

/// The machine's hierarchies, in mount order.
///
/// # Errors
/// `/proc/self/mountinfo` cannot be read, or there is no hierarchy.
pub(crate) fn hierarchies() -> Result<Vec<Hierarchy>> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    let found: Vec<_> = text.lines().filter_map(parse_mount).collect();
    ensure!(!found.is_empty(), "no cgroup hierarchy is mounted below {ROOT}");
    Ok(found)
}

/// Reads one line of mountinfo (proc(5)); `None` when it is not a cgroup hierarchy.
fn parse_mount(line: &str) -> Option<Hierarchy> {
    let (left, right) = line.split_once(" - ")?;
    let mount_point = left.split(' ').nth(4)?;
    let mut right = right.split(' ');
    let file_system = right.next()?;
    if !matches!(file_system, "cgroup" | "cgroup2") || !mount_point.starts_with(ROOT) {
        return None;
    }
    let is_identity = |option: &&str| {
        !matches!(*option, "rw" | "ro" | "xattr" | "clone_children") && !option.starts_with("release_agent=")
    };
    let options = match file_system {
        "cgroup" => right.nth(1)?.split(',').filter(is_identity).collect::<Vec<_>>().join(","),
        _ => String::new(),
    };
    Some(Hierarchy { mount_point: mount_point.into(), file_system: file_system.into(), options })
}

/// Makes the cgroup `name` in every hierarchy and returns its directories.
///
/// # Errors
/// A directory cannot be made, or a cpuset cannot be filled.
pub(crate) fn create(name: &str) -> Result<Vec<PathBuf>> {
    let directories: Vec<_> = hierarchies()?.into_iter().map(|hierarchy| hierarchy.mount_point.join(name)).collect();
    for directory in &directories {
        fs::create_dir_all(directory).with_context(|| format!("create cgroup {}", directory.display()))?;
        inherit_cpuset(directory)?;
    }
    Ok(directories)
}

/// The directories of the cgroup `name` in which its own processes live, whether or not they exist.
///
/// # Errors
/// As [`hierarchies`].
pub(crate) fn directories(name: &str) -> Result<Vec<PathBuf>> {
    let directories = hierarchies()?.into_iter().map(|hierarchy| hierarchy.mount_point.join(name));
    Ok(directories
        .map(|directory| Some(directory.join(LEAF)).filter(|leaf| leaf.exists()).unwrap_or(directory))
        .collect())
}

/// Makes the cgroup `name` fit to hold the cgroups of pods, once `process` has made it the root of its cgroup namespace.
/// Where version 2 is all there is, processes and children with controllers exclude each other (no internal processes, see
/// cgroups(7)): the process moves into a leaf, and the controllers are handed on.
///
/// # Errors
/// The kernel refuses the move or a controller.
pub(crate) fn divide(name: &str, process: i32) -> Result<()> {
    match hierarchies()?.as_slice() {
        [only] if only.file_system == "cgroup2" => divide_directory(&only.mount_point, name, process),
        _ => Ok(()),
    }
}

fn divide_directory(mount_point: &Path, name: &str, process: i32) -> Result<()> {
    let directory = mount_point.join(name);
    let leaf = directory.join(LEAF);
    fs::create_dir(&leaf).with_context(|| format!("create cgroup {}", leaf.display()))?;
    let members = leaf.join("cgroup.procs");
    fs::write(&members, process.to_string()).with_context(|| format!("write {process} to {}", members.display()))?;
    hand_on_controllers(mount_point)?;
    hand_on_controllers(&directory)
}

/// Enables all controllers of a version 2 cgroup for its children.
fn hand_on_controllers(directory: &Path) -> Result<()> {
    let (available, enabled) = (directory.join("cgroup.controllers"), directory.join("cgroup.subtree_control"));
    let controllers = fs::read_to_string(&available).with_context(|| format!("read {}", available.display()))?;
    for controller in controllers.split_whitespace() {
        fs::write(&enabled, format!("+{controller}"))
            .with_context(|| format!("enable {controller} in {}", enabled.display()))?;
    }
    Ok(())
}

/// A version 1 cpuset starts empty and takes no process before it has processors and memory nodes.
fn inherit_cpuset(directory: &Path) -> Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let target = directory.join(file);
        let parent = directory.parent().context("a cgroup without a parent")?.join(file);
        if target.exists() && parent.exists() {
            let value = fs::read_to_string(&parent).with_context(|| format!("read {}", parent.display()))?;
            fs::write(&target, value.trim()).with_context(|| format!("write {}", target.display()))?;
        }
    }
    Ok(())
}

/// Ends every process in the cgroup `name` and below with SIGKILL, then removes it from every hierarchy.
///
/// # Errors
/// A process outlives the signal, or a directory stays.
pub(crate) fn remove(name: &str) -> Result<()> {
    for hierarchy in hierarchies()? {
        let directory = hierarchy.mount_point.join(name);
        if directory.exists() {
            wait_until(&format!("cgroup {} without processes", directory.display()), Duration::from_secs(20), || {
                kill_all(&directory)
            })?;
            wait_until(&format!("removal of cgroup {}", directory.display()), Duration::from_secs(10), || {
                Ok(remove_tree(&directory).ok())
            })?;
        }
    }
    Ok(())
}

/// Signals what is in the tree; a value means that nothing was.
fn kill_all(directory: &Path) -> Result<Option<()>> {
    let processes = processes(directory)?;
    for process in &processes {
        super::daemon::signal(*process, nix::sys::signal::Signal::SIGKILL);
    }
    Ok(processes.is_empty().then_some(()))
}

fn processes(directory: &Path) -> Result<Vec<i32>> {
    let mut found = Vec::new();
    for directory in tree(directory) {
        // A cgroup may go away between the listing and this read.
        let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
        found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    }
    Ok(found)
}

fn remove_tree(directory: &Path) -> Result<()> {
    for directory in tree(directory) {
        fs::remove_dir(&directory).with_context(|| format!("remove cgroup {}", directory.display()))?;
    }
    Ok(())
}

/// `directory` and all below it, children before parents.
fn tree(directory: &Path) -> Vec<PathBuf> {
    let children = fs::read_dir(directory).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir());
    let mut found: Vec<_> = children.flat_map(|entry| tree(&entry.path())).collect();
    found.push(directory.to_owned());
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_1_hierarchy_keeps_only_the_options_that_name_it() {
        let line = "35 30 0:29 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd";
        let hierarchy = parse_mount(line).unwrap();
        assert_eq!(hierarchy.options, "name=systemd");
        assert_eq!(hierarchy.mount_point, Path::new("/sys/fs/cgroup/systemd"));
    }

    #[test]
    fn a_version_2_hierarchy_has_no_options() {
        let line = "36 30 0:30 / /sys/fs/cgroup/unified rw,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate";
        let hierarchy = parse_mount(line).unwrap();
        assert_eq!((hierarchy.file_system.as_str(), hierarchy.options.as_str()), ("cgroup2", ""));
    }

    #[test]
    fn a_divided_cgroup_takes_processes_and_children_with_controllers() {
        let hierarchies = hierarchies().unwrap();
        let version_2 = hierarchies.iter().find(|hierarchy| hierarchy.file_system == "cgroup2").unwrap();
        let enabled = version_2.mount_point.join("cgroup.subtree_control");
        let before = fs::read_to_string(&enabled).unwrap();
        let name = format!("weft-test-{}", std::process::id());
        create(&name).unwrap();
        let mut sleeper = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        divide_directory(&version_2.mount_point, &name, i32::try_from(sleeper.id()).unwrap()).unwrap();
        let members = fs::read_to_string(version_2.mount_point.join(&name).join("system/cgroup.procs")).unwrap();
        assert_eq!(members.trim(), sleeper.id().to_string());
        let child = version_2.mount_point.join(&name).join("kubepods");
        fs::create_dir(&child).unwrap();
        let controllers = |directory: &Path| fs::read_to_string(directory.join("cgroup.controllers")).unwrap();
        assert_eq!(controllers(&child), controllers(&version_2.mount_point));
        remove(&name).unwrap();
        assert!(!sleeper.wait().unwrap().success());
        assert!(!version_2.mount_point.join(&name).exists());
        let after = fs::read_to_string(&enabled).unwrap();
        for controller in after.split_whitespace().filter(|controller| !before.contains(controller)) {
            fs::write(&enabled, format!("-{controller}")).unwrap();
        }
    }

    #[test]
    fn other_mounts_are_not_hierarchies() {
        assert_eq!(parse_mount("22 1 8:1 / / rw,relatime - ext4 /dev/root rw"), None);
        assert_eq!(parse_mount("22 1 8:1 / /mnt/cgroup rw - cgroup cgroup rw,cpu"), None);
    }
}
