// SPDX-License-Identifier: Apache-2.0
//! What the caller decides: where to pin, and how large the maps are.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use weft_abi::map;
use weft_logic::set::WAYS;

use crate::{Error, error::Result, flows::ENTRIES_OF_A_SET};

/// How to open the dataplane.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Options {
    /// Folder on a bpf filesystem; everything is pinned below [`weft_abi::PinFolder`] in it. Its parent must exist.
    pub pin_dir: PathBuf,
    /// Sizes of maps.
    pub sizes: MapSizes,
    /// For tests: what kernel 6.1 has not is not used: it tells no source of a route (6.7) and shows programs no `struct sk_buff` (6.2).
    pub as_kernel_6_1: bool,
    /// The root of the control groups (version 2): sockets of the host then reach ports of the host at its own addresses. None: they do
    /// not.
    pub cgroup: Option<PathBuf>,
}

impl Options {
    /// Where the agent of a node pins by default.
    pub const PIN_DIR: &str = "/sys/fs/bpf/weft";

    /// The given folder and [`MapSizes::default`].
    #[must_use]
    pub fn new(pin_dir: impl Into<PathBuf>) -> Self {
        Self { pin_dir: pin_dir.into(), sizes: MapSizes::default(), as_kernel_6_1: false, cgroup: None }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self::new(Self::PIN_DIR)
    }
}

/// Most entries of each map whose size is a matter of demand. Where maps are pinned in other sizes, new ones are made, and connections
/// taken over.
///
/// "Whole" maps take their memory at once, the others as entries come (plus 16 bytes per possible entry for a hash).
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct MapSizes {
    /// Workload interfaces of this node. Whole.
    pub ports: u32,
    /// Addresses of this node, its workloads' and its own. Whole.
    pub addresses: u32,
    /// Prefixes: pod CIDRs of all nodes and Service CIDRs.
    pub remotes: u32,
    /// Service addresses times ports, of the cluster. Beside 56 bytes for each that may come, memory is taken as they come.
    pub services: u32,
    /// Backends and `loadBalancerSourceRanges` of all Service ports; twice those of one while it changes.
    pub members: u32,
    /// Clients of Services with `sessionAffinity`, one for each Service port that a client has used; about 120 bytes each. The
    /// least recently used one makes room. Whole.
    pub affinities: u32,
    /// Addresses of pods that policies of this node may mean.
    pub peers: u32,
    /// Classes of them: pods of one namespace with the same labels and named ports. As with `rules`.
    pub classes: u32,
    /// Rules of policies, two port ranges in each; a plan takes half of them, because old and new ones stand beside each other for a
    /// moment.
    pub rules: u32,
    /// Prefixes that policies of this node name. As with `rules`.
    pub blocks: u32,
    /// Verdicts of policies that are remembered. The least recently used one makes room. Whole.
    pub verdicts: u32,
    /// IPv4 flow entries, two per connection; about 205 bytes each. Where there is no room, what is over, closed or was never answered
    /// makes some, and an established connection does not. Whole.
    pub flows4: u32,
    /// IPv6 flow entries; about 300 bytes each. Whole.
    pub flows6: u32,
    /// Fragmented datagrams under way. Whole.
    pub fragments: u32,
    /// Bytes of the event ring: a power of two, at least 4096. Whole.
    pub events_bytes: u32,
}

impl MapSizes {
    /// Upstream Kubernetes' default for `maxPods`.
    const DEFAULT_PODS: u32 = 110;

    /// Sizes for a node of at most `pods` workloads, in a cluster up to upstream's limits (5,000 nodes, 150,000 pods, 10,000
    /// Services).
    ///
    /// A workload is given 4 interfaces, 512 IPv4 connections and half as many IPv6 ones on average. With 110 workloads all
    /// maps together take about 87 MiB, most of it flows.
    #[must_use]
    pub const fn for_node(pods: u32) -> Self {
        let ports = power_of_two(pods.saturating_mul(4), 256, 1 << 16);
        let flows4 = power_of_two(pods.saturating_mul(1024), 1 << 14, 1 << 20);
        Self {
            ports,
            addresses: ports * 2 + 1024,
            remotes: 1 << 16,
            services: 1 << 16,
            members: 1 << 18,
            affinities: power_of_two(pods.saturating_mul(256), 1 << 12, 1 << 18),
            peers: 1 << 19,
            classes: 1 << 16,
            rules: 1 << 18,
            blocks: 1 << 17,
            verdicts: 1 << 14,
            flows4,
            flows6: flows4 / 2,
            fragments: 1 << 13,
            events_bytes: 1 << 20,
        }
    }

    /// Whether the kernel can make maps of these sizes.
    ///
    /// # Errors
    /// [`Error::Size`] names the first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        for (field, map, value) in self.demanded() {
            let (field, valid, requirement) = if map == map::EVENTS {
                (
                    // As users write it.
                    "eventsBytes",
                    value.is_power_of_two() && (1 << 12..=1 << 30).contains(&value),
                    "a power of two from 4096 to 1073741824",
                )
            } else {
                (field, (1..=1 << 26).contains(&value), "from 1 to 67108864")
            };
            if !valid {
                return Err(Error::Size { field, value, requirement });
            }
        }
        Ok(())
    }
}

/// Reads the sizes out of the table of maps.
macro_rules! declare {
    ($(
        $(#[$doc:meta])*
        $name:ident $accessor:ident: $kind:ident<$key:ty, $value:ty>, $role:ident, $size:ident($($sizing:tt)*);
    )+) => {
        impl MapSizes {
            /// Entries that a new map gets, in the order of [`map::ALL`].
            pub(crate) fn entries(&self) -> [u32; map::COUNT] {
                [$(entries!(self, $size, $($sizing)*)),+]
            }

            /// Each field that sizes a map: its name, the map, the value.
            fn demanded(&self) -> impl Iterator<Item = (&'static str, &'static str, u32)> {
                [$(demanded!(self, $name, $size, $($sizing)*)),+].into_iter().flatten()
            }
        }
    };
}

macro_rules! entries {
    ($sizes:ident, fixed, $entries:expr) => {
        $entries
    };
    ($sizes:ident, sized, $field:ident) => {
        $sizes.$field
    };
    ($sizes:ident, part, $field:ident, $divisor:expr) => {
        $sizes.$field.div_ceil($divisor)
    };
    ($sizes:ident, sets, $field:ident) => {
        $sizes.$field.div_ceil(ENTRIES_OF_A_SET)
    };
    ($sizes:ident, lines, $field:ident) => {
        $sizes.$field.div_ceil(ENTRIES_OF_A_SET) * WAYS
    };
    ($sizes:ident, per, $field:ident, $factor:expr, $more:expr) => {
        $sizes.$field.saturating_mul($factor).saturating_add($more)
    };
}

macro_rules! demanded {
    // All parts of a flow table are made from one field.
    ($sizes:ident, $name:ident, lines, $field:ident) => {
        Some((stringify!($field), map::$name, $sizes.$field))
    };
    ($sizes:ident, $name:ident, sized, $field:ident) => {
        Some((stringify!($field), map::$name, $sizes.$field))
    };
    ($sizes:ident, $name:ident, $size:ident, $($sizing:tt)*) => {
        None
    };
}

weft_abi::for_each_map!(declare);

impl Default for MapSizes {
    fn default() -> Self {
        Self::for_node(Self::DEFAULT_PODS)
    }
}

const fn power_of_two(wanted: u32, least: u32, most: u32) -> u32 {
    if wanted <= least {
        least
    } else if wanted >= most {
        most
    } else {
        wanted.next_power_of_two()
    }
}

#[cfg(test)]
mod tests {
    use super::{Error, MapSizes};

    #[test]
    fn follows_the_number_of_workloads_within_bounds() {
        let (small, default, large) = (MapSizes::for_node(0), MapSizes::default(), MapSizes::for_node(u32::MAX));
        assert_eq!((small.ports, small.flows4), (256, 1 << 14));
        assert_eq!((default.ports, default.flows4, default.flows6), (512, 1 << 17, 1 << 16));
        assert_eq!([small, default, large].map(|sizes| sizes.affinities), [1 << 12, 1 << 15, 1 << 18]);
        assert_eq!((large.ports, large.flows4), (1 << 16, 1 << 20));
        for sizes in [small, default, large] {
            sizes.validate().unwrap();
        }
    }

    #[test]
    fn refuses_what_the_kernel_would_and_names_the_field() {
        let error = MapSizes { members: 0, ..MapSizes::default() }.validate().unwrap_err();
        assert!(matches!(error, Error::Size { field: "members", value: 0, .. }), "{error}");
        for events_bytes in [0, 1 << 11, 5000, 1 << 31] {
            let error = MapSizes { events_bytes, ..MapSizes::default() }.validate().unwrap_err();
            assert!(matches!(error, Error::Size { field: "eventsBytes", .. }), "{error}");
        }
    }

    #[test]
    fn rings_have_room_for_an_eighth_of_the_members() {
        let rings = |members| {
            let entries = MapSizes { members, ..MapSizes::default() }.entries();
            entries[weft_abi::map::ALL.iter().position(|name| *name == weft_abi::map::RINGS).unwrap()]
        };
        assert_eq!([1, 7, 8, 9, 1 << 18].map(rings), [1, 1, 1, 2, 1 << 15]);
    }

    #[test]
    fn settings_may_name_some_fields_and_no_other() {
        let sizes: MapSizes = serde_json::from_str(r#"{"flows4": 4096, "eventsBytes": 65536}"#).unwrap();
        assert_eq!(sizes, MapSizes { flows4: 4096, events_bytes: 65536, ..MapSizes::default() });
        let error = serde_json::from_str::<MapSizes>(r#"{"flow4": 4096}"#).unwrap_err();
        assert!(error.to_string().contains("flow4"), "{error}");
    }
}
