// SPDX-License-Identifier: Apache-2.0
//! Which of the kernel's messages say that the host may send elsewhere than before: routes, rules, addresses and links that are
//! not Weft's own.

use std::{
    collections::{HashMap, HashSet},
    hash::Hasher as _,
};

use nix::net::if_::if_indextoname;

use super::{
    changes::{HEADER, attribute, kind_of},
    links::NAME_PREFIX,
    routes::ROUTE_PROTOCOL,
};
use crate::plan::Digest;

/// Sources: `linux/rtnetlink.h`, `linux/if_link.h`, `linux/if_addr.h`.
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_OIF: u16 = 4;
const NETCONFA_IFINDEX: u16 = 1;
const RTM_NEWNEXTHOP: u16 = 104;
const RTM_DELNEXTHOP: u16 = 105;
/// `IFF_UP`, `IFF_RUNNING`, `IFF_LOWER_UP`.
const CARRIES: u32 = 0x1 | 0x40 | 0x1_0000;
/// A copy that the kernel made of a route for one destination.
const RTM_F_CLONED: u32 = 0x200;

/// The links and addresses of the last messages: the kernel repeats a message with every router advertisement and counter.
#[derive(Default)]
pub(super) struct Moves {
    /// Weft's own devices.
    own: HashSet<u32>,
    /// By index: a digest of what packets out of it depend on.
    links: HashMap<u32, u64>,
    addresses: HashSet<Vec<u8>>,
}

impl Moves {
    /// Whether decisions that were made by the host's routes may be others now. What is not understood may be anything.
    pub(super) fn moved(&mut self, message: &[u8]) -> bool {
        let body = message.get(HEADER..).unwrap_or_default();
        match kind_of(message) {
            Some(libc::RTM_NEWROUTE | libc::RTM_DELROUTE) => self.is_foreign_route(body),
            Some(kind @ (libc::RTM_NEWADDR | libc::RTM_DELADDR)) => self.address_moved(kind == libc::RTM_NEWADDR, body),
            Some(kind @ (libc::RTM_NEWLINK | libc::RTM_DELLINK)) => self.link_moved(kind == libc::RTM_NEWLINK, body),
            Some(libc::RTM_NEWNETCONF | libc::RTM_DELNETCONF) => {
                !number(body, 4, NETCONFA_IFINDEX).is_some_and(|index| self.is_own(index))
            }
            Some(libc::RTM_NEWRULE | libc::RTM_DELRULE | RTM_NEWNEXTHOP | RTM_DELNEXTHOP) => true,
            _ => false,
        }
    }

    /// Messages were lost: what was told last may not be what is.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    fn is_foreign_route(&mut self, body: &[u8]) -> bool {
        let is_ours = body.get(5) == Some(&ROUTE_PROTOCOL);
        let is_copy = word(body, 8).is_some_and(|flags| flags & RTM_F_CLONED != 0);
        !is_ours && !is_copy && !number(body, 12, RTA_OIF).is_some_and(|index| self.is_own(index))
    }

    fn address_moved(&mut self, is_new: bool, body: &[u8]) -> bool {
        if word(body, 4).is_some_and(|index| self.is_own(index)) {
            return false;
        }
        let Some(header) = body.get(..8) else { return true };
        let value = |kind| attribute(body.get(8..)?, kind);
        let address = value(IFA_LOCAL).or_else(|| value(IFA_ADDRESS)).unwrap_or_default();
        // Family, prefix length and scope, and the device.
        let key = [&header[..2], &header[3..8], address].concat();
        if is_new {
            return self.addresses.insert(key);
        }
        self.addresses.remove(&key);
        true
    }

    fn link_moved(&mut self, is_new: bool, body: &[u8]) -> bool {
        let (Some(family), Some(index), Some(flags)) = (body.first(), word(body, 4), word(body, 8)) else {
            return true;
        };
        // A bridge's view of its port.
        if i32::from(*family) == libc::AF_BRIDGE {
            return false;
        }
        let value = |kind| body.get(16..).and_then(|attributes| attribute(attributes, kind)).unwrap_or_default();
        let name = value(IFLA_IFNAME);
        if name.starts_with(NAME_PREFIX.as_bytes()) {
            if is_new {
                self.own.insert(index);
            } else {
                self.own.remove(&index);
            }
            return false;
        }
        // Its name was Weft's before.
        self.own.remove(&index);
        if !is_new {
            self.links.remove(&index);
            return true;
        }
        let mut digest = Digest::default();
        digest.write_u32(flags & CARRIES);
        for kind in [IFLA_MTU, IFLA_MASTER, IFLA_ADDRESS] {
            digest.write(value(kind));
            digest.write_u8(b'/');
        }
        let digest = digest.finish();
        self.links.insert(index, digest) != Some(digest)
    }

    /// Of a new device the kernel tells settings and addresses before the link.
    fn is_own(&self, index: u32) -> bool {
        self.own.contains(&index)
            || if_indextoname(index).is_ok_and(|name| name.as_bytes().starts_with(NAME_PREFIX.as_bytes()))
    }
}

fn word(body: &[u8], at: usize) -> Option<u32> {
    let bytes = body.get(at..at + 4)?;
    Some(u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

/// An attribute of four bytes, behind a header of `after` bytes.
fn number(body: &[u8], after: usize, kind: u16) -> Option<u32> {
    word(attribute(body.get(after..)?, kind)?, 0)
}
