// SPDX-License-Identifier: Apache-2.0

//! Workloads that send what they should not: a pod, a guest on a tap, a guest on vhost-user.

use std::{
    fmt,
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context as _, Result};
use weft_probe::frames::Offload;

use super::{
    frame::{Frame, Link},
    net::Place as _,
    tap::TapWorkload,
};
use crate::{cni::Attachment, container::Container, shell::Shell as _, vm::Vm};

/// Which kind of workload attacks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Who {
    Pod,
    TapGuest,
    VhostGuest,
}

impl Who {
    pub(super) const ALL: [Self; 3] = [Self::Pod, Self::TapGuest, Self::VhostGuest];
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pod => "pod",
            Self::TapGuest => "tap",
            Self::VhostGuest => "vhost",
        })
    }
}

/// An address family.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The address of this family.
    pub(super) fn of(self, addresses: &[IpAddr]) -> Result<IpAddr> {
        let found = addresses.iter().copied().find(|address| address.is_ipv4() == (self == Self::V4));
        found.with_context(|| format!("no {self} address"))
    }

    /// Every address of this family.
    pub(super) const fn any(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
            Self::V6 => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
        }
    }

    /// One of two.
    pub(super) fn pick<T>(self, v4: T, v6: T) -> T {
        match self {
            Self::V4 => v4,
            Self::V6 => v6,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.pick("ipv4", "ipv6"))
    }
}

/// How frames get out of it.
#[derive(Clone, Copy)]
enum Body<'a> {
    Pod(&'a Container),
    Guest(&'a Vm),
    Tap(&'a TapWorkload),
}

/// A workload that attacks.
#[derive(Clone, Copy)]
pub(super) struct Attacker<'a> {
    body: Body<'a>,
    mac: [u8; 6],
}

impl<'a> Attacker<'a> {
    pub(super) fn pod(container: &'a Container) -> Result<Self> {
        Ok(Self { body: Body::Pod(container), mac: mac(container.attachment())? })
    }

    pub(super) fn guest(vm: &'a Vm) -> Result<Self> {
        Ok(Self { body: Body::Guest(vm), mac: mac(vm.attachment())? })
    }

    pub(super) fn tap(workload: &'a TapWorkload) -> Result<Self> {
        Ok(Self { body: Body::Tap(workload), mac: mac(&workload.attachment)? })
    }

    /// Its addresses.
    pub(super) fn addresses(&self) -> &'a [IpAddr] {
        match self.body {
            Body::Pod(container) => container.addresses(),
            Body::Guest(vm) => vm.addresses(),
            Body::Tap(workload) => &workload.addresses,
        }
    }

    /// Its own address of a family with a port.
    pub(super) fn socket(&self, family: Family, port: u16) -> Result<SocketAddr> {
        Ok(SocketAddr::new(family.of(self.addresses())?, port))
    }

    /// From its Ethernet address to its gateway's.
    pub(super) fn link(&self) -> Link {
        Link { to: weft_abi::GATEWAY_MAC, from: self.mac }
    }

    /// Sends frames out of its interface, in this order.
    pub(super) fn send(&self, frames: &[Frame]) -> Result<()> {
        match self.body {
            Body::Pod(container) => {
                let plain = container.sender("eth0", false)?;
                let offloading = container.sender("eth0", true)?;
                for frame in frames {
                    let sender = if frame.offload.is_some() { &offloading } else { &plain };
                    sender.send(&frame.bytes, frame.offload.unwrap_or_default()).context("send a frame")?;
                }
                Ok(())
            }
            Body::Tap(workload) => frames
                .iter()
                .try_for_each(|frame| workload.send(&frame.bytes, frame.offload.unwrap_or_default()))
                .context("send a frame"),
            Body::Guest(vm) => {
                let mut script = "set -e\n".to_owned();
                for frame in frames {
                    writeln!(script, "weft-probe send eth0 {} {}", hex(&frame.bytes), option(frame.offload))?;
                }
                vm.sh(&script)?.ok().map(drop)
            }
        }
    }
}

fn mac(attachment: &Attachment) -> Result<[u8; 6]> {
    let side = attachment.interface(true).or_else(|_| attachment.interface(false))?;
    let mac: weft_api::Mac = side["mac"].as_str().context("no mac in the result")?.parse()?;
    Ok(mac.0)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The option of `weft-probe send` for an offload.
fn option(offload: Option<Offload>) -> String {
    let Some(Offload { flags, segmentation, header_len, segment_len, checksum_start, checksum_offset }) = offload
    else {
        return String::new();
    };
    format!("--offload {flags},{segmentation},{header_len},{segment_len},{checksum_start},{checksum_offset}")
}
