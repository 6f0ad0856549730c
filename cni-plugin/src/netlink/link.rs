// SPDX-License-Identifier: Apache-2.0
//! Links.

use std::os::fd::{AsRawFd as _, BorrowedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage},
};
use weft_api::Mac;

use super::{Netlink, NetlinkError};

/// A link as observed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Link {
    /// Index.
    pub(crate) index: u32,
    /// Name.
    pub(crate) name: String,
    /// Ethernet address.
    pub(crate) mac: Option<Mac>,
    /// MTU in bytes.
    pub(crate) mtu: u32,
    /// `IFF_UP`.
    pub(crate) up: bool,
    /// `IFF_RUNNING`: it has a carrier, and the kernel sends by it.
    pub(crate) running: bool,
    /// `ifalias`.
    pub(crate) alias: Option<String>,
    /// Index of a veth's other end, in that end's namespace.
    pub(crate) peer: Option<u32>,
}

/// A veth pair to make: one end here, the other in a sandbox.
pub(crate) struct VethPair<'a> {
    /// Name of the end here.
    pub(crate) host: &'a str,
    /// Ethernet address of the end here.
    pub(crate) host_mac: Mac,
    /// Name of the sandbox's end.
    pub(crate) sandbox: &'a str,
    /// Ethernet address of the sandbox's end.
    pub(crate) sandbox_mac: Mac,
    /// The sandbox's network namespace.
    pub(crate) netns: BorrowedFd<'a>,
    /// MTU of both ends in bytes.
    pub(crate) mtu: u32,
}

impl Netlink {
    /// The link called `name`, if there is one.
    pub(crate) fn link(&mut self, name: &str) -> Result<Option<Link>, NetlinkError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        match self.get(RouteNetlinkMessage::GetLink(message)) {
            Ok(answer) => Ok(answer.and_then(observed)),
            Err(refusal) if refusal.source.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(refusal) => Err(refusal.during(format!("look for the interface '{name}'"))),
        }
    }

    /// All links of the namespace.
    pub(crate) fn links(&mut self) -> Result<Vec<Link>, NetlinkError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        let answers = self.dump(RouteNetlinkMessage::GetLink(message));
        Ok(answers.map_err(|refusal| refusal.during("list the interfaces"))?.into_iter().filter_map(observed).collect())
    }

    /// Makes a veth pair; both ends are down.
    pub(crate) fn add_veth(&mut self, pair: &VethPair<'_>) -> Result<(), NetlinkError> {
        let mut peer = LinkMessage::default();
        peer.attributes = named(pair.sandbox, pair.sandbox_mac, pair.mtu);
        peer.attributes.push(LinkAttribute::NetNsFd(pair.netns.as_raw_fd()));
        let mut message = LinkMessage::default();
        message.attributes = named(pair.host, pair.host_mac, pair.mtu);
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));
        self.execute(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL).map_err(|refusal| {
            refusal.during(format!("make the veth pair '{}' (host) and '{}' (sandbox)", pair.host, pair.sandbox))
        })
    }

    /// Gives `link` an Ethernet address and an MTU; it must be down.
    pub(crate) fn set_ether(&mut self, link: &Link, mac: Mac, mtu: u32) -> Result<(), NetlinkError> {
        let attributes = vec![LinkAttribute::Address(mac.0.to_vec()), LinkAttribute::Mtu(mtu)];
        self.set(link, attributes, LinkFlags::empty(), "set address and mtu of")
    }

    /// Gives `link` an alias, for people and for DEL.
    pub(crate) fn set_alias(&mut self, link: &Link, alias: &str) -> Result<(), NetlinkError> {
        self.set(link, vec![LinkAttribute::IfAlias(alias.to_owned())], LinkFlags::empty(), "set the alias of")
    }

    /// Brings `link` up.
    pub(crate) fn set_up(&mut self, link: &Link) -> Result<(), NetlinkError> {
        self.set(link, Vec::new(), LinkFlags::Up, "bring up")
    }

    /// Deletes `link`; one that is gone is no error.
    pub(crate) fn delete_link(&mut self, link: &Link) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = link.index;
        match self.execute(RouteNetlinkMessage::DelLink(message), 0) {
            Err(refusal) if refusal.source.raw_os_error() != Some(libc::ENODEV) => {
                Err(refusal.during(format!("delete the interface '{}'", link.name)))
            }
            _ => Ok(()),
        }
    }

    fn set(
        &mut self,
        link: &Link,
        attributes: Vec<LinkAttribute>,
        flags: LinkFlags,
        verb: &str,
    ) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = link.index;
        message.header.flags = flags;
        message.header.change_mask = flags;
        message.attributes = attributes;
        self.execute(RouteNetlinkMessage::SetLink(message), 0)
            .map_err(|refusal| refusal.during(format!("{verb} the interface '{}'", link.name)))
    }
}

fn named(name: &str, mac: Mac, mtu: u32) -> Vec<LinkAttribute> {
    vec![LinkAttribute::IfName(name.to_owned()), LinkAttribute::Address(mac.0.to_vec()), LinkAttribute::Mtu(mtu)]
}

fn observed(message: RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = message else { return None };
    let flags = message.header.flags;
    let (up, running) = (flags.contains(LinkFlags::Up), flags.contains(LinkFlags::Running));
    let mut link = Link { index: message.header.index, up, running, ..Link::default() };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok().map(Mac),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
            LinkAttribute::Link(index) => link.peer = Some(index),
            _ => {}
        }
    }
    Some(link)
}
