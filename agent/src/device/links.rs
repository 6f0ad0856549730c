// SPDX-License-Identifier: Apache-2.0
//! Links: find, list, change, delete. Also what attach and release of a port need.

use futures::TryStreamExt;
use rtnetlink::{
    LinkMessageBuilder, LinkUnspec,
    packet_core::{DefaultNla, NLA_F_NESTED},
    packet_route::link::{
        AfSpecInet, AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo,
        LinkLayerType, LinkMessage,
    },
};
use weft_abi::GATEWAY_MAC;
use weft_api::Mac;

use super::{Error, Result, error::to_io, netlink::Netlink, sysctl};

/// Every device of Weft has a name with this prefix.
pub const NAME_PREFIX: &str = "weft";

const IFLA_INET_CONF: u16 = 1;
const IPV4_DEVCONF_FORWARDING: u16 = 1;
const IPV4_DEVCONF_RP_FILTER: u16 = 8;
const IPV4_DEVCONF_ACCEPT_LOCAL: u16 = 23;

/// A link as the kernel has it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// Ethernet address; none for devices without one.
    pub mac: Option<Mac>,
    /// MTU.
    pub mtu: u32,
    /// Kind of a virtual device (`veth`, `vxlan`, `tun`); empty for hardware.
    pub kind: String,
    /// Administratively up.
    pub up: bool,
    /// It has a carrier.
    pub running: bool,
    /// Without ARP and neighbour discovery.
    pub noarp: bool,
    /// Takes part in multicast: the kernel reports its groups (MLD) when it comes up.
    pub multicast: bool,
    /// What its packets begin with.
    pub framing: Framing,
    /// `lo`.
    pub loopback: bool,
    /// Index of the bridge, bond, team or VRF that has it as a port.
    pub controller: Option<u32>,
    /// Index of the other end of a veth pair.
    pub peer: Option<u32>,
    /// `net.ipv4.conf.*.forwarding`.
    pub forwarding: i32,
    /// `net.ipv4.conf.*.rp_filter`.
    pub rp_filter: i32,
    /// `net.ipv4.conf.*.accept_local`.
    pub accept_local: i32,
    /// It has IPv6: `net.ipv6.conf.*.disable_ipv6` is 0.
    pub ipv6: bool,
    /// The kernel gives it an IPv6 link-local address when it comes up: it has IPv6, and its mode is not `addrgenmode none`.
    pub link_local: bool,
    /// UDP port of a VXLAN device, host byte order.
    pub vxlan_port: Option<u16>,
    /// A VXLAN device in external (collect metadata) mode.
    pub vxlan_external: bool,
}

/// The link of that name, in the caller's network namespace.
pub async fn find(name: &str) -> Result<Option<Link>> {
    find_with(&Netlink::open()?, name).await
}

/// Every link whose name begins with [`NAME_PREFIX`], by index.
pub async fn list_weft() -> Result<Vec<Link>> {
    let netlink = Netlink::open()?;
    let mut links = list_with(&netlink).await?;
    links.retain(|link| link.name.starts_with(NAME_PREFIX));
    links.sort_by_key(|link| link.index);
    Ok(links)
}

/// Makes the host's end of a veth, or a tap, ready for its programs: [`GATEWAY_MAC`], no IPv6 link-local address, no multicast
/// of its own, no ARP, no IPv6, no IPv4 forwarding, strict `rp_filter`, no `accept_local`. Whether it is up stays as it is; [`open_port`] is for when it has
/// them. Does nothing to a link that is so already.
///
/// The programs need nothing of the host's IP stack there, and what they redirect to a port does not meet it. `rp_filter` is for
/// what they let pass to the agent's packet socket, a guest's DHCP: routes to workloads lead into `weft0`, so the host's own stack
/// drops it instead of answering "port unreachable". All of it together closes the port to a workload whose programs somebody
/// takes away, until they are back: no source address has its route there, and a port has no address of its own, so that a
/// loose filter (`all.rp_filter` 2) refuses it too. What is left is a broadcast from 0.0.0.0 to the host's own sockets, whose
/// source the kernel does not check.
///
/// # Errors
/// The link is absent, or the kernel refuses.
pub async fn prepare_port(name: &str) -> Result<Link> {
    let netlink = Netlink::open()?;
    let link = existing(&netlink, name).await?;
    port_change(&link).apply(&netlink, name).await?;
    if link.ipv6 {
        sysctl::disable_ipv6(name)?;
    }
    existing(&netlink, name).await
}

/// Whether [`prepare_port`] has nothing to do.
#[must_use]
pub fn is_prepared(link: &Link) -> bool {
    !port_change(link).any && !link.ipv6
}

fn port_change(link: &Link) -> Change {
    let mut change = Change::of(link).quiet(link);
    if link.mac != Some(Mac(GATEWAY_MAC)) {
        change = change.mac(GATEWAY_MAC);
    }
    if !link.noarp {
        change = change.noarp();
    }
    if link.rp_filter != 1 || link.forwarding != 0 || link.accept_local != 0 {
        let settings = [(IPV4_DEVCONF_RP_FILTER, 1), (IPV4_DEVCONF_FORWARDING, 0), (IPV4_DEVCONF_ACCEPT_LOCAL, 0)];
        change = change.ipv4(&settings);
    }
    change
}

/// Brings a port up: to be called when its programs are attached, and not before.
///
/// # Errors
/// The link is absent, or the kernel refuses.
pub async fn open_port(name: &str) -> Result<()> {
    set_port(name, true).await
}

/// Takes a port down: nothing passes it in any direction, not even into the host's stack.
///
/// # Errors
/// The link is absent, or the kernel refuses.
pub async fn close_port(name: &str) -> Result<()> {
    set_port(name, false).await
}

async fn set_port(name: &str, up: bool) -> Result<()> {
    set_with(&Netlink::open()?, name, up).await.map(drop)
}

/// Sets a link up or down; whether it was not so.
pub(super) async fn set_with(netlink: &Netlink, name: &str, up: bool) -> Result<bool> {
    let link = existing(netlink, name).await?;
    if link.up == up {
        return Ok(false);
    }
    let change = Change::of(&link);
    let change = if up { change.up() } else { change.down() };
    change.apply(netlink, name).await?;
    Ok(true)
}

/// Deletes the link of that name; false where there was none.
pub async fn delete(name: &str) -> Result<bool> {
    delete_with(&Netlink::open()?, name).await
}

pub(super) async fn existing(netlink: &Netlink, name: &str) -> Result<Link> {
    find_with(netlink, name).await?.ok_or_else(|| Error::Netlink {
        action: "find",
        object: format!("link '{name}'"),
        source: std::io::Error::from_raw_os_error(libc::ENODEV),
    })
}

pub(super) async fn find_with(netlink: &Netlink, name: &str) -> Result<Option<Link>> {
    match netlink.link().get().match_name(name).execute().try_next().await {
        Ok(message) => Ok(message.as_ref().map(Link::from)),
        Err(error) => match to_io(error) {
            absent if absent.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            source => Err(Error::Netlink { action: "look up", object: format!("link '{name}'"), source }),
        },
    }
}

pub(super) async fn list_with(netlink: &Netlink) -> Result<Vec<Link>> {
    netlink
        .link()
        .get()
        .execute()
        .map_ok(|message| Link::from(&message))
        .try_collect()
        .await
        .map_err(Error::netlink("list", "links"))
}

pub(super) async fn delete_with(netlink: &Netlink, name: &str) -> Result<bool> {
    let Some(link) = find_with(netlink, name).await? else { return Ok(false) };
    netlink.count_change();
    match netlink.link().del(link.index).execute().await.map_err(to_io) {
        Ok(()) => Ok(true),
        Err(gone) if gone.raw_os_error() == Some(libc::ENODEV) => Ok(false),
        Err(source) => Err(Error::Netlink { action: "delete", object: format!("link '{name}'"), source }),
    }
}

pub(super) async fn create(netlink: &Netlink, name: &str, message: LinkMessage) -> Result<Link> {
    netlink.count_change();
    netlink.link().add(message).execute().await.map_err(Error::netlink("create", format!("link '{name}'")))?;
    existing(netlink, name).await
}

/// How one of the node's own devices should be; quiet in any case.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settings {
    pub(super) mac: [u8; 6],
    pub(super) mtu: u32,
    /// Without ARP and neighbour discovery.
    pub(super) noarp: bool,
    /// `rp_filter` 0 and `accept_local` 1.
    pub(super) any_source: bool,
    /// Up, else as it is.
    pub(super) up: bool,
}

/// Moves a link to `wanted`; sends nothing where it is so already.
pub(super) async fn repair(netlink: &Netlink, name: &str, wanted: Settings) -> Result<Link> {
    let mut link = existing(netlink, name).await?;
    if link.mtu != wanted.mtu {
        // First and alone: below 1280 bytes a device has no IPv6 settings that could be changed.
        Change::of(&link).mtu(wanted.mtu).apply(netlink, name).await?;
        link = existing(netlink, name).await?;
    }
    let mut change = Change::of(&link).quiet(&link);
    if link.mac != Some(Mac(wanted.mac)) {
        change = change.mac(wanted.mac);
    }
    if wanted.noarp && !link.noarp {
        change = change.noarp();
    }
    if wanted.any_source && (link.rp_filter != 0 || link.accept_local != 1) {
        change = change.ipv4(&[(IPV4_DEVCONF_RP_FILTER, 0), (IPV4_DEVCONF_ACCEPT_LOCAL, 1)]);
    }
    change.apply(netlink, name).await?;
    if wanted.up && !link.up {
        // Last and alone: the settings above must hold before the kernel makes addresses for a device that comes up.
        Change::of(&link).up().apply(netlink, name).await?;
    }
    existing(netlink, name).await
}

/// Changes to one link, applied in one request; without any, nothing is sent.
pub(super) struct Change {
    builder: LinkMessageBuilder<LinkUnspec>,
    af_spec: Vec<AfSpecUnspec>,
    any: bool,
}

impl Change {
    pub(super) fn of(link: &Link) -> Self {
        Self { builder: LinkUnspec::new_with_index(link.index), af_spec: Vec::new(), any: false }
    }

    pub(super) fn mac(self, mac: [u8; 6]) -> Self {
        Self { builder: self.builder.address(mac.to_vec()), any: true, ..self }
    }

    pub(super) fn mtu(self, mtu: u32) -> Self {
        Self { builder: self.builder.mtu(mtu), any: true, ..self }
    }

    pub(super) fn up(self) -> Self {
        Self { builder: self.builder.up(), any: true, ..self }
    }

    pub(super) fn down(self) -> Self {
        Self { builder: self.builder.down(), any: true, ..self }
    }

    pub(super) fn noarp(self) -> Self {
        Self { builder: self.builder.arp(false), any: true, ..self }
    }

    /// Keeps the kernel from sending anything of its own accord: no multicast (MLD reports), `addrgenmode none` (DAD, router
    /// solicitations).
    pub(super) fn quiet(self, link: &Link) -> Self {
        let change = if link.multicast { self.no_multicast() } else { self };
        if link.link_local { change.no_link_local() } else { change }
    }

    fn no_multicast(self) -> Self {
        Self { builder: self.builder.multicast(false), any: true, ..self }
    }

    fn no_link_local(mut self) -> Self {
        self.af_spec.push(AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]));
        Self { any: true, ..self }
    }

    /// Settings of `net.ipv4.conf`, by netlink: `/proc/sys` is read-only in an unprivileged container.
    fn ipv4(mut self, settings: &[(u16, u32)]) -> Self {
        let conf = DefaultNla::new(IFLA_INET_CONF | NLA_F_NESTED, nested_u32(settings));
        self.af_spec.push(AfSpecUnspec::Inet(vec![AfSpecInet::Other(conf)]));
        Self { any: true, ..self }
    }

    pub(super) async fn apply(self, netlink: &Netlink, name: &str) -> Result<()> {
        let Self { builder, af_spec, any } = self;
        if !any {
            return Ok(());
        }
        let mut message = builder.build();
        if !af_spec.is_empty() {
            message.attributes.push(LinkAttribute::AfSpecUnspec(af_spec));
        }
        tracing::info!(link = name, "changing link");
        netlink.count_change();
        netlink.link().change(message).execute().await.map_err(Error::netlink("change", format!("link '{name}'")))
    }
}

/// Attributes of four bytes one after the other, as `IFLA_INET_CONF` wants them in a request. (The library's own form of the
/// request leaves out attributes that are zero, and with them `rp_filter` = 0.)
fn nested_u32(attributes: &[(u16, u32)]) -> Vec<u8> {
    const LENGTH: u16 = 8;
    attributes
        .iter()
        .flat_map(|(kind, value)| [LENGTH.to_ne_bytes().as_slice(), &kind.to_ne_bytes(), &value.to_ne_bytes()].concat())
        .collect()
}

impl From<&LinkMessage> for Link {
    fn from(message: &LinkMessage) -> Self {
        let flags = message.header.flags;
        let mut link = Self {
            index: message.header.index,
            up: flags.contains(LinkFlags::Up),
            running: flags.contains(LinkFlags::Running),
            loopback: flags.contains(LinkFlags::Loopback),
            noarp: flags.contains(LinkFlags::Noarp),
            multicast: flags.contains(LinkFlags::Multicast),
            ..Self::default()
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Address(bytes) => link.mac = <[u8; 6]>::try_from(bytes.as_slice()).ok().map(Mac),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Controller(controller) => link.controller = Some(*controller),
                LinkAttribute::Link(peer) => link.peer = Some(*peer),
                LinkAttribute::LinkInfo(infos) => infos.iter().for_each(|info| link.read_info(info)),
                LinkAttribute::AfSpecUnspec(specs) => specs.iter().for_each(|spec| link.read_af_spec(spec)),
                _ => {}
            }
        }
        link.framing = Framing::of(message.header.link_layer_type, &link.kind, flags);
        link
    }
}

/// What the packets of a device begin with, as programs at its ingress see them.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Framing {
    /// An Ethernet header.
    Ethernet,
    /// The IP header: PPP, TUN, WireGuard, IP in IP, GRE.
    Ip,
    /// Something else, or it is not known.
    #[default]
    Other,
}

impl Framing {
    /// Of devices that decapsulate those whose driver puts the packet's beginning at the inner IP header (since Linux 5.14), which
    /// GRE towards many does not.
    fn of(link_layer: LinkLayerType, kind: &str, flags: LinkFlags) -> Self {
        match (link_layer, kind) {
            (LinkLayerType::Ether, _) => Self::Ethernet,
            (LinkLayerType::Ppp | LinkLayerType::Rawip, _)
            | (LinkLayerType::None, "tun" | "wireguard")
            | (LinkLayerType::Tunnel, "ipip")
            | (LinkLayerType::Tunnel6, "ip6tnl")
            | (LinkLayerType::Sit, "sit") => Self::Ip,
            (LinkLayerType::Ipgre, "gre") if flags.contains(LinkFlags::Pointopoint) => Self::Ip,
            _ => Self::Other,
        }
    }
}

impl Link {
    fn read_info(&mut self, info: &LinkInfo) {
        match info {
            LinkInfo::Kind(kind) => self.kind = kind.to_string(),
            LinkInfo::Data(InfoData::Vxlan(data)) => {
                for item in data {
                    match item {
                        InfoVxlan::Port(port) => self.vxlan_port = Some(*port),
                        InfoVxlan::CollectMetadata(external) => self.vxlan_external = *external,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }

    fn read_af_spec(&mut self, spec: &AfSpecUnspec) {
        match spec {
            AfSpecUnspec::Inet(items) => {
                for item in items {
                    if let AfSpecInet::DevConf(conf) = item {
                        self.forwarding = conf.forwarding;
                        self.rp_filter = conf.rp_filter;
                        self.accept_local = conf.accept_local;
                    }
                }
            }
            AfSpecUnspec::Inet6(items) => {
                let disabled =
                    |item: &AfSpecInet6| matches!(item, AfSpecInet6::DevConf(conf) if conf.disable_ipv6 != 0);
                self.ipv6 = !items.iter().any(disabled);
                self.link_local = !items.contains(&AfSpecInet6::AddrGenMode(In6AddrGenMode::None));
            }
            _ => {}
        }
    }
}
