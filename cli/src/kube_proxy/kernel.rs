// SPDX-License-Identifier: Apache-2.0
//! What the kernel is asked by name: tables and chains of nftables, ipsets, devices, virtual servers.

use std::io;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP};
use netlink_sys::protocols::{NETLINK_GENERIC, NETLINK_NETFILTER, NETLINK_ROUTE};

use super::netlink::{ask, attribute, message, name, name_in, value_in};

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Family {
    V4,
    V6,
}

/// A chain of nftables.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Chain {
    pub(super) family: Family,
    pub(super) table: String,
    pub(super) name: String,
}

/// `linux/netfilter/nfnetlink.h`.
const NFTABLES: u16 = 10;
const IPSET: u16 = 6;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
/// `linux/netfilter/nf_tables.h`.
const GET_TABLE: u16 = 1;
const DELETE_TABLE: u16 = 2;
const GET_CHAIN: u16 = 4;
const TABLE_NAME: u16 = 1;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
/// `linux/netfilter/ipset/ip_set.h`; the version is the oldest that kernels speak.
const DESTROY_SET: u16 = 3;
const LIST_SETS: u16 = 7;
const SET_PROTOCOL: u16 = 1;
const SET_NAME: u16 = 2;
const SET_FLAGS: u16 = 6;
const SET_VERSION: u8 = 6;
const NAMES_ALONE: u32 = 2;
/// A set that rules still name: `IPSET_ERR_BUSY`, `IPSET_ERR_REFERENCED`.
const SET_BUSY: [i32; 2] = [4100, 4108];
/// `linux/rtnetlink.h`.
const DELETE_LINK: u16 = 17;
const GET_LINK: u16 = 18;
const LINK_HEADER: [u8; 16] = [0; 16];
const LINK_NAME: u16 = 3;
/// `linux/genetlink.h` and `linux/ip_vs.h`.
const CONTROL: u16 = 16;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
const FLUSH_SERVERS: u8 = 17;

impl Family {
    pub(super) const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// `NFPROTO_IPV4`, `NFPROTO_IPV6`.
    const fn number(self) -> u8 {
        match self {
            Self::V4 => 2,
            Self::V6 => 10,
        }
    }

    fn of(number: u8) -> Option<Self> {
        Self::BOTH.into_iter().find(|family| family.number() == number)
    }

    /// As nftables says it.
    pub(super) const fn nft(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }

    /// As people say it.
    pub(super) const fn told(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// The families in which nftables has a table of this name.
pub(super) fn tables(wanted: &str) -> io::Result<Vec<Family>> {
    let answers = list(message(of(NFTABLES, GET_TABLE), NLM_F_DUMP, &netfilter(0, 0)))?;
    let table = |answer: &Vec<u8>| {
        let (header, attributes) = answer.split_at_checked(4)?;
        Family::of(header[0]).filter(|_| name_in(attributes, TABLE_NAME).as_deref() == Some(wanted))
    };
    Ok(answers.iter().filter_map(table).collect())
}

/// All chains of nftables of both families.
pub(super) fn chains() -> io::Result<Vec<Chain>> {
    let answers = list(message(of(NFTABLES, GET_CHAIN), NLM_F_DUMP, &netfilter(0, 0)))?;
    let chain = |answer: &Vec<u8>| {
        let (header, attributes) = answer.split_at_checked(4)?;
        let (table, name) = (name_in(attributes, CHAIN_TABLE)?, name_in(attributes, CHAIN_NAME)?);
        Some(Chain { family: Family::of(header[0])?, table, name })
    };
    Ok(answers.iter().filter_map(chain).collect())
}

/// Removes a table of nftables with all that is in it.
pub(super) fn delete_table(family: Family, table: &str) -> io::Result<()> {
    let delete = [&netfilter(family.number(), 0)[..], &name(TABLE_NAME, table)].concat();
    let batch = [
        message(BATCH_BEGIN, 0, &netfilter(0, NFTABLES)),
        message(of(NFTABLES, DELETE_TABLE), NLM_F_ACK, &delete),
        message(BATCH_END, 0, &netfilter(0, NFTABLES)),
    ];
    ask(NETLINK_NETFILTER, &batch.concat()).map(drop)
}

/// The names of all ipsets.
pub(super) fn sets() -> io::Result<Vec<String>> {
    let flags = attribute(SET_FLAGS, &NAMES_ALONE.to_be_bytes());
    let request = [&netfilter(0, 0)[..], &attribute(SET_PROTOCOL, &[SET_VERSION]), &flags].concat();
    let answers = list(message(of(IPSET, LIST_SETS), NLM_F_DUMP, &request))?;
    Ok(answers.iter().filter_map(|answer| name_in(answer.get(4..)?, SET_NAME)).collect())
}

/// Removes an ipset.
pub(super) fn destroy_set(set: &str) -> io::Result<()> {
    let request = [&netfilter(0, 0)[..], &attribute(SET_PROTOCOL, &[SET_VERSION]), &name(SET_NAME, set)].concat();
    ask(NETLINK_NETFILTER, &message(of(IPSET, DESTROY_SET), NLM_F_ACK, &request)).map(drop).map_err(|error| {
        let busy = error.raw_os_error().is_some_and(|code| SET_BUSY.contains(&code));
        if busy { io::Error::new(io::ErrorKind::ResourceBusy, "a rule of somebody uses it") } else { error }
    })
}

/// Whether there is a device of this name.
pub(super) fn has_device(device: &str) -> io::Result<bool> {
    let request = [&LINK_HEADER[..], &name(LINK_NAME, device)].concat();
    match ask(NETLINK_ROUTE, &message(GET_LINK, NLM_F_ACK, &request)) {
        Err(error) if error.raw_os_error() == Some(NO_DEVICE) => Ok(false),
        answer => answer.map(|_| true),
    }
}

/// Removes a device.
pub(super) fn delete_device(device: &str) -> io::Result<()> {
    let request = [&LINK_HEADER[..], &name(LINK_NAME, device)].concat();
    ask(NETLINK_ROUTE, &message(DELETE_LINK, NLM_F_ACK, &request)).map(drop)
}

/// Removes all virtual servers of ipvs.
pub(super) fn flush_servers() -> io::Result<()> {
    let generic = |command: u8| vec![command, 1, 0, 0];
    let request = [generic(GET_FAMILY), name(FAMILY_NAME, "IPVS")].concat();
    let answers = ask(NETLINK_GENERIC, &message(CONTROL, NLM_F_ACK, &request))?;
    let number = answers.iter().find_map(|answer| value_in(answer.get(4..)?, FAMILY_ID)?.first_chunk());
    let number = number.map(|bytes| u16::from_ne_bytes(*bytes)).ok_or(io::ErrorKind::NotFound)?;
    ask(NETLINK_GENERIC, &message(number, NLM_F_ACK, &generic(FLUSH_SERVERS))).map(drop)
}

const NO_DEVICE: i32 = 19;
/// What kernels say that have nothing of the kind: `EINVAL` of netfilter, `EPROTONOSUPPORT` of sockets.
const NOTHING_OF_THE_KIND: [i32; 2] = [22, 93];

fn list(request: Vec<u8>) -> io::Result<Vec<Vec<u8>>> {
    match ask(NETLINK_NETFILTER, &request) {
        Err(error) if error.raw_os_error().is_some_and(|code| NOTHING_OF_THE_KIND.contains(&code)) => Ok(Vec::new()),
        answer => answer,
    }
}

/// The message type of a request to a part of netfilter.
const fn of(part: u16, request: u16) -> u16 {
    part << 8 | request
}

/// `struct nfgenmsg`.
fn netfilter(family: u8, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    [family, 0, high, low]
}
