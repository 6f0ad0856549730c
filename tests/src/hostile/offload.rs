// SPDX-License-Identifier: Apache-2.0

//! A4: a request for a checksum is a request to write two bytes somewhere into the packet, after policy has seen it.

use std::{io, mem, net::SocketAddr, os::fd::AsRawFd as _};

use anyhow::{Context as _, Result, ensure};
use weft_probe::frames::Offload;

use super::{
    Case,
    attacker::{Family, Who},
    drops::{counted, counted_by_device},
    frame::{self, Frame},
    net::Place as _,
    site::Site,
    witness::{Mark, Witness},
};

/// The reasons that count these attacks: the programs', and that of the device of a vhost-user port.
const REASON: &str = "checksum-offload";
const DEVICE_REASON: &str = "bad_checksum_place";
/// Where honest datagrams go to.
const PORT: u16 = 9_009;

/// Where a transport header begins in a frame of each family, and where a UDP header has its checksum.
const TRANSPORT: (u16, u16) = (34, 54);
const CHECKSUM: u16 = 6;

/// Start and offset of a checksum.
type Target = (u16, u16);

/// Name, and where the checksum goes in each family.
const TARGETS: [(&str, Target, Target); 5] = [
    // The kernel refuses a start inside of the fixed part of an IPv6 header's first 26 bytes by itself.
    ("at-an-address", (26, 0), (40, 12)),
    ("at-the-destination-address", (30, 0), (40, 0)),
    ("at-the-source-port", (34, 0), (54, 0)),
    ("at-the-destination-port", (34, 2), (54, 2)),
    ("of-another-protocol", (34, 16), (54, 16)),
];

pub(super) fn cases() -> Vec<Case<Site>> {
    let mut cases = Vec::new();
    for who in Who::ALL {
        for family in Family::ALL {
            for (what, v4, v6) in TARGETS {
                let (start, offset) = family.pick(v4, v6);
                let name = format!("A4/checksum-{what}/{who}/{family}");
                cases.push(Case::new(name, move |site: &Site| {
                    writes(site, who, family, Offload::checksum(start, offset))
                }));
            }
        }
    }
    cases
}

/// To the outside, over an uplink whose device lets the kernel write checksums.
fn writes(site: &Site, who: Who, family: Family, forged: Offload) -> Result<()> {
    let attacker = site.attacker(who)?;
    let own = site.own();
    own.inside(|| leave_checksums_to_the_kernel("eth0"))?;
    let from = attacker.socket(family, 5_700)?;
    let to = SocketAddr::new(site.outside().address_for(family.any()), PORT);
    // What comes in there was on the node's wire: behind it a filter of the switch may look at header checksums.
    let receiver = site.bed.switch().receiver(own.name())?;
    let send = |mark: &Mark, offload: Offload| {
        let bytes = frame::udp(attacker.link(), from, to, &[&[0x55; 16], mark.as_slice()].concat());
        attacker.send(&[Frame { bytes, offload: Some(offload) }])
    };
    let honest = Offload::checksum(family.pick(TRANSPORT.0, TRANSPORT.1), CHECKSUM);
    let attacked = || Witness::new("the wire", &receiver).refuses(|mark| send(mark, forged), |mark| send(mark, honest));
    match who {
        Who::VhostGuest => counted_by_device(own, DEVICE_REASON, attacked)?,
        _ => counted(own, REASON, attacked)?,
    }
    let seen = Witness::new("the wire", &receiver).sees(|mark| send(mark, honest))?;
    let source = family.pick(seen.get(26..30), seen.get(22..38)).context("a short frame")?;
    let node = own.address_for(family.any());
    let node = match node {
        std::net::IpAddr::V4(v4) => v4.octets().to_vec(),
        std::net::IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    ensure!(source == node, "the honest packet does not come from the node: {source:02x?}");
    Ok(())
}

/// `struct ethtool_value` of `linux/ethtool.h`.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

/// `SIOCETHTOOL` and `ETHTOOL_STXCSUM`.
const ETHTOOL: libc::c_ulong = 0x8946;
const SET_TX_CHECKSUM: u32 = 0x17;

/// `ethtool -K IFACE tx off`.
fn leave_checksums_to_the_kernel(iface: &str) -> io::Result<()> {
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
    let mut value = EthtoolValue { command: SET_TX_CHECKSUM, data: 0 };
    // SAFETY: all zeros is a valid ifreq.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(iface.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the request names an interface and points to a value that lives through the call.
    match unsafe { libc::ioctl(socket.as_raw_fd(), ETHTOOL, &raw mut request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
