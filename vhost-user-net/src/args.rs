// SPDX-License-Identifier: Apache-2.0
//! The command line.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use nix::unistd::{Gid, Group, Uid, User};

/// Moves a virtual machine's frames between its vhost-user rings and its tap.
///
/// The VMM (QEMU, Cloud Hypervisor, Dragonball, DPDK) hands the rings of a virtio-net device over on a Unix socket; the
/// device passes frames to the queues of an existing tap and back, with checksum and segmentation offloads. One process
/// serves one VM, and one front end after the other: a VMM that reconnects finds its link as it left it.
#[derive(Debug, Parser)]
#[command(name = "weft-vhost", version, max_term_width = 100, after_long_help = EXAMPLES)]
pub struct Args {
    /// Path of the vhost-user socket
    #[arg(long, short, alias = "socket-path", value_name = "PATH", required_unless_present_any = ["fd", "print_capabilities", "man"])]
    pub socket: Option<PathBuf>,

    /// Take a connected vhost-user socket from this descriptor instead; the process ends with the connection
    #[arg(long, value_name = "FD", conflicts_with_all = ["socket", "client"])]
    pub fd: Option<i32>,

    /// Name of the tap; it has to exist: ip tuntap add dev NAME mode tap vnet_hdr (multi_queue)
    #[arg(long, short, value_name = "NAME", required_unless_present_any = ["print_capabilities", "man"])]
    pub tap: Option<String>,

    /// Connect to a front end that listens on the socket, again and again, instead of listening
    #[arg(long)]
    pub client: bool,

    /// Milliseconds between two tries to connect as client
    #[arg(long, value_name = "MS", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    pub retry_ms: u64,

    /// Number of queue pairs, one thread each; more than one needs a multi_queue tap
    #[arg(long, short, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=16))]
    pub queues: u16,

    /// Greatest number of entries the guest may give a ring
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = ring_size)]
    pub queue_size: u16,

    /// MAC address in the configuration space, for VMMs that read it from the device
    #[arg(long, value_name = "MAC", value_parser = mac)]
    pub mac: Option<Mac>,

    /// MTU in the configuration space, for VMMs that read it from the device
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(68..))]
    pub mtu: Option<u16>,

    /// Most microseconds to look for work before a thread sleeps, less while that is in vain; trades processor time for
    /// latency
    #[arg(long, value_name = "US", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=10_000))]
    pub poll_us: u64,

    /// Path of a socket that answers `metrics`, `capabilities` and `trace N` with JSON
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,

    /// Permission bits of the sockets, in octal
    #[arg(long, value_name = "MODE", default_value = "0660", value_parser = octal)]
    pub socket_mode: u32,

    /// Owner of the sockets, by number or name; the user the VMM runs as
    #[arg(long, value_name = "USER[:GROUP]", value_parser = identity)]
    pub socket_owner: Option<Identity>,

    /// User to become once the tap and the sockets are open, by number or name
    #[arg(long, value_name = "USER[:GROUP]", value_parser = identity)]
    pub user: Option<Identity>,

    /// What the process denies itself once it is set up
    #[arg(long, value_enum, default_value_t = SandboxMode::On)]
    pub sandbox: SandboxMode,

    /// Form of the log on standard error; RUST_LOG sets the level
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,

    /// Print what the device offers as JSON and exit
    #[arg(long)]
    pub print_capabilities: bool,

    /// Print the manual page and exit
    #[arg(long)]
    pub man: bool,
}

const EXAMPLES: &str = "\
Examples:
  ip tuntap add dev vm1 mode tap vnet_hdr && ip link set vm1 up
  weft-vhost --socket /run/vm1.sock --tap vm1 --user nobody --control /run/vm1.ctl
  qemu-system-x86_64 ... -object memory-backend-memfd,id=m,size=1G,share=on -numa node,memdev=m \\
      -chardev socket,id=c,path=/run/vm1.sock,reconnect=1 -netdev vhost-user,id=n,chardev=c \\
      -device virtio-net-pci,netdev=n
  echo metrics | nc -U /run/vm1.ctl

Several queue pairs: make the tap with multi_queue, give --queues 4 here, queues=4 to QEMU's netdev
and mq=on,vectors=10 to its device.

Signals: SIGTERM and SIGINT stop the rings at a frame's end and exit with 0.";

/// How much the process denies itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SandboxMode {
    /// No new privileges, no capabilities, landlock and a system call filter
    On,
    /// Nothing; for debugging
    Off,
}

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people
    Text,
    /// One JSON object a line
    Json,
}

/// A MAC address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

/// A user and its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The user.
    pub uid: Uid,
    /// The group: the one given, or the user's own.
    pub gid: Gid,
}

fn ring_size(text: &str) -> Result<u16, String> {
    let size: u16 = text.parse().map_err(|_| format!("{text} is not a number up to 32768"))?;
    if !size.is_power_of_two() || !(64..=32768).contains(&size) {
        return Err(format!("{size} is not a power of two from 64 to 32768"));
    }
    Ok(size)
}

fn mac(text: &str) -> Result<Mac, String> {
    let wrong = || format!("{text} is not a MAC address like 52:54:00:12:34:56");
    let bytes: Vec<u8> = text
        .split(':')
        .map(|part| u8::from_str_radix(part, 16).ok().filter(|_| part.len() == 2))
        .collect::<Option<_>>()
        .ok_or_else(wrong)?;
    let bytes: [u8; 6] = bytes.try_into().map_err(|_| wrong())?;
    if bytes[0] & 1 != 0 {
        return Err(format!("{text} is a multicast address"));
    }
    Ok(Mac(bytes))
}

fn octal(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777).ok_or(format!("{text} is not an octal mode"))
}

fn identity(text: &str) -> Result<Identity, String> {
    let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
    let (uid, own_gid) = user_of(user)?;
    let gid = match group {
        Some(group) => group_of(group)?,
        None => own_gid.ok_or(format!("user {user} has no known group; give USER:GROUP"))?,
    };
    Ok(Identity { uid, gid })
}

fn user_of(user: &str) -> Result<(Uid, Option<Gid>), String> {
    if let Ok(number) = user.parse() {
        // A container may have no list of users at all: an error there.
        let known = User::from_uid(Uid::from_raw(number)).ok().flatten();
        return Ok((Uid::from_raw(number), known.map(|user| user.gid)));
    }
    let known = User::from_name(user)
        .map_err(|error| format!("user {user}: {error}"))?
        .ok_or(format!("there is no user {user}"))?;
    Ok((known.uid, Some(known.gid)))
}

fn group_of(group: &str) -> Result<Gid, String> {
    if let Ok(number) = group.parse() {
        return Ok(Gid::from_raw(number));
    }
    let known = Group::from_name(group).map_err(|error| format!("group {group}: {error}"))?;
    known.map(|group| group.gid).ok_or(format!("there is no group {group}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn values_are_checked() {
        assert_eq!(mac("52:54:00:12:34:56"), Ok(Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56])));
        for wrong in ["52:54:00:12:34", "52:54:00:12:34:567", "53:54:00:12:34:56", "x", "+5:54:00:12:34:56:"] {
            assert!(mac(wrong).is_err(), "{wrong}");
        }
        assert!(ring_size("256").is_ok() && ring_size("300").is_err() && ring_size("32").is_err());
        assert!(octal("0660").is_ok() && octal("8").is_err() && octal("7777").is_err());
        assert_eq!(identity("12:34"), Ok(Identity { uid: Uid::from_raw(12), gid: Gid::from_raw(34) }));
        assert!(identity("no-such-user").is_err());
    }

    #[test]
    fn a_socket_and_a_tap_are_needed_unless_only_information_is_wanted() {
        assert!(Args::try_parse_from(["weft-vhost", "--tap", "t"]).is_err());
        assert!(Args::try_parse_from(["weft-vhost", "--socket", "s"]).is_err());
        assert!(Args::try_parse_from(["weft-vhost", "--print-capabilities"]).is_ok());
        assert!(Args::try_parse_from(["weft-vhost", "--socket-path", "s", "--tap", "t"]).is_ok());
        assert!(Args::try_parse_from(["weft-vhost", "--fd", "3", "--tap", "t", "--client"]).is_err());
    }
}
