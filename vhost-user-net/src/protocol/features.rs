// SPDX-License-Identifier: Apache-2.0
//! Feature bits: what this device offers, what they need of each other, and their names.
//!
//! Sources: virtio 1.3 section 5.1.3 (network device) and section 6 (reserved bits); QEMU `docs/interop/vhost-user.rst`
//! for `VHOST_F_LOG_ALL`, `VHOST_USER_F_PROTOCOL_FEATURES` and the protocol features.

use crate::port::Offload;

macro_rules! bits {
    ($table:ident: $($(#[$doc:meta])* $name:ident = $bit:literal;)+) => {
        $($(#[$doc])* pub const $name: u64 = 1 << $bit;)+
        const $table: &[(u64, &str)] = &[$(($name, stringify!($name)),)+];
    };
}

bits! { VIRTIO_NAMES:
    /// The device takes frames with partial checksums.
    CSUM = 0;
    /// The driver takes frames with partial checksums.
    GUEST_CSUM = 1;
    /// The configuration space has an MTU.
    MTU = 3;
    /// The configuration space has a MAC address.
    MAC = 5;
    /// The driver takes TCP/IPv4 segmentation offload frames.
    GUEST_TSO4 = 7;
    /// The driver takes TCP/IPv6 segmentation offload frames.
    GUEST_TSO6 = 8;
    /// The driver takes such frames with ECN.
    GUEST_ECN = 9;
    /// The device takes TCP/IPv4 segmentation offload frames.
    HOST_TSO4 = 11;
    /// The device takes TCP/IPv6 segmentation offload frames.
    HOST_TSO6 = 12;
    /// The device takes such frames with ECN.
    HOST_ECN = 13;
    /// A frame to the driver may be spread over several buffers.
    MRG_RXBUF = 15;
    /// The configuration space has the link's status.
    STATUS = 16;
    /// There is a control queue; the VMM serves it.
    CTRL_VQ = 17;
    /// The driver can be asked to announce itself after a migration; the VMM asks.
    GUEST_ANNOUNCE = 21;
    /// There are several queue pairs.
    MQ = 22;
    /// vhost: log every page written.
    LOG_ALL = 26;
    /// Descriptors may point to tables of descriptors.
    INDIRECT_DESC = 28;
    /// Notifications are suppressed by index.
    EVENT_IDX = 29;
    /// vhost-user: protocol features can be negotiated.
    PROTOCOL_FEATURES = 30;
    /// Virtio 1.0 and later.
    VERSION_1 = 32;
    /// Buffers are used in the order in which they were made available.
    IN_ORDER = 35;
    /// The driver takes UDP/IPv4 segmentation offload frames.
    GUEST_USO4 = 54;
    /// The driver takes UDP/IPv6 segmentation offload frames.
    GUEST_USO6 = 55;
    /// The device takes UDP segmentation offload frames.
    HOST_USO = 56;
}

/// Protocol feature bits.
pub mod protocol {
    bits! { PROTOCOL_NAMES:
        /// Several queues.
        MQ = 0;
        /// The dirty log is shared memory.
        LOG_SHMFD = 1;
        /// The device announces the guest after a migration.
        RARP = 2;
        /// Requests can be acknowledged.
        REPLY_ACK = 3;
        /// The device is told the MTU.
        MTU = 4;
        /// The configuration space is the device's.
        CONFIG = 9;
        /// The device can be reset.
        RESET_DEVICE = 13;
        /// Memory regions can be added and removed one by one.
        CONFIGURE_MEM_SLOTS = 15;
    }

    /// Names of the bits set, in ascending order.
    pub fn names(bits: u64) -> Vec<&'static str> {
        super::names_of(PROTOCOL_NAMES, bits)
    }
}

/// Names of the virtio bits set, in ascending order.
pub fn names(bits: u64) -> Vec<&'static str> {
    names_of(VIRTIO_NAMES, bits)
}

fn names_of(table: &[(u64, &'static str)], bits: u64) -> Vec<&'static str> {
    table.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| *name).collect()
}

/// What the port and the configuration make possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abilities {
    /// More than one queue pair.
    pub multiqueue: bool,
    /// The port takes and gives UDP segmentation offload frames (Linux 6.2 and later).
    pub udp_segmentation: bool,
    /// The configuration has a MAC address.
    pub mac: bool,
    /// The configuration has an MTU.
    pub mtu: bool,
}

/// The virtio feature bits to offer.
pub fn offered(abilities: Abilities) -> u64 {
    let Abilities { multiqueue, udp_segmentation, mac, mtu: _ } = abilities;
    let mut bits = VERSION_1 | MRG_RXBUF | EVENT_IDX | INDIRECT_DESC | IN_ORDER | PROTOCOL_FEATURES | LOG_ALL;
    bits |= CSUM | HOST_TSO4 | HOST_TSO6 | HOST_ECN | GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN;
    bits |= STATUS | CTRL_VQ | GUEST_ANNOUNCE | MTU;
    if udp_segmentation {
        bits |= HOST_USO | GUEST_USO4 | GUEST_USO6;
    }
    if multiqueue {
        bits |= MQ;
    }
    if mac {
        bits |= MAC;
    }
    bits
}

/// The protocol feature bits to offer.
///
/// `CONFIG` is offered only when there is something of the device's own in the configuration space: QEMU's
/// vhost-user netdev keeps that space itself and warns at every start when a device offers it.
pub fn offered_protocol(abilities: Abilities) -> u64 {
    let mut bits = protocol::MQ | protocol::LOG_SHMFD | protocol::RARP | protocol::REPLY_ACK;
    bits |= protocol::MTU | protocol::RESET_DEVICE | protocol::CONFIGURE_MEM_SLOTS;
    if abilities.mac || abilities.mtu {
        bits |= protocol::CONFIG;
    }
    bits
}

/// Bytes of the virtio-net header in front of every frame (virtio 1.3, 5.1.6.1).
pub fn net_header_len(acked: u64) -> usize {
    if acked & (VERSION_1 | MRG_RXBUF) != 0 { 12 } else { 10 }
}

/// What the port may hand to a guest with these features.
///
/// The dependencies of virtio 1.3, 5.1.3.1 are applied: without `GUEST_CSUM` nothing else holds.
pub fn guest_offload(acked: u64) -> Offload {
    let has = |bit: u64| acked & bit != 0;
    if !has(GUEST_CSUM) {
        return Offload::default();
    }
    let tso4 = has(GUEST_TSO4);
    let tso6 = has(GUEST_TSO6);
    Offload {
        checksum: true,
        tso4,
        tso6,
        ecn: has(GUEST_ECN) && (tso4 || tso6),
        // The kernel takes both families or none.
        uso: has(GUEST_USO4) && has(GUEST_USO6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Abilities = Abilities { multiqueue: false, udp_segmentation: false, mac: false, mtu: false };

    #[test]
    fn what_the_port_cannot_do_is_not_offered() {
        assert_eq!(offered(PLAIN) & (MQ | MAC | HOST_USO | GUEST_USO4 | GUEST_USO6), 0);
        let all = offered(Abilities { multiqueue: true, udp_segmentation: true, mac: true, mtu: true });
        assert_eq!(all & (MQ | MAC | HOST_USO), MQ | MAC | HOST_USO);
        assert_eq!(offered_protocol(PLAIN) & protocol::CONFIG, 0);
    }

    #[test]
    fn offloads_to_the_guest_need_its_checksum_bit() {
        assert_eq!(guest_offload(GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN), Offload::default());
        let offload = guest_offload(GUEST_CSUM | GUEST_TSO6 | GUEST_ECN | GUEST_USO4);
        assert_eq!(offload, Offload { checksum: true, tso4: false, tso6: true, ecn: true, uso: false });
    }

    #[test]
    fn the_header_is_short_for_legacy_drivers_without_mergeable_buffers_only() {
        assert_eq!(net_header_len(0), 10);
        assert_eq!(net_header_len(MRG_RXBUF), 12);
        assert_eq!(net_header_len(VERSION_1), 12);
    }

    #[test]
    fn names_are_listed_in_ascending_order() {
        assert_eq!(names(VERSION_1 | CSUM), ["CSUM", "VERSION_1"]);
        assert_eq!(protocol::names(protocol::REPLY_ACK), ["REPLY_ACK"]);
    }
}
