// SPDX-License-Identifier: Apache-2.0
//! The programs and where each belongs.

use std::fmt;

use weft_abi::program;

/// Direction of a hook, seen from the host's side of the device.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Direction {
    /// Packets that the device hands to the host.
    Ingress,
    /// Packets that the host hands to the device.
    Egress,
}

/// What holds a program on a device.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Anchor {
    /// A filter on its `clsact` qdisc: workloads' ports, which come and go many times a second and are Weft's alone.
    Filter,
    /// A pinned tcx link: devices that stay, and that others may look after, too.
    Link,
}

/// A program of the dataplane.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Program {
    /// [`program::FROM_WORKLOAD`].
    FromWorkload,
    /// [`program::TO_WORKLOAD`].
    ToWorkload,
    /// [`program::FROM_HOST`].
    FromHost,
    /// [`program::FROM_UPLINK`].
    FromUplink,
    /// [`program::FROM_L3`].
    FromL3,
    /// [`program::FROM_OVERLAY`].
    FromOverlay,
}

impl Program {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::FromWorkload, Self::ToWorkload, Self::FromHost, Self::FromUplink, Self::FromL3, Self::FromOverlay];

    /// Name in the object, and in the names of link pins.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::FromWorkload => program::FROM_WORKLOAD,
            Self::ToWorkload => program::TO_WORKLOAD,
            Self::FromHost => program::FROM_HOST,
            Self::FromUplink => program::FROM_UPLINK,
            Self::FromL3 => program::FROM_L3,
            Self::FromOverlay => program::FROM_OVERLAY,
        }
    }

    /// The hook that it is written for.
    #[must_use]
    pub const fn direction(self) -> Direction {
        match self {
            Self::FromWorkload | Self::FromUplink | Self::FromL3 | Self::FromOverlay => Direction::Ingress,
            Self::ToWorkload | Self::FromHost => Direction::Egress,
        }
    }

    pub(crate) const fn anchor(self) -> Anchor {
        match self {
            Self::FromWorkload | Self::ToWorkload => Anchor::Filter,
            Self::FromHost | Self::FromUplink | Self::FromL3 | Self::FromOverlay => Anchor::Link,
        }
    }

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|program| program.name() == name)
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::Program;

    #[test]
    fn names_every_program_of_the_abi() {
        assert_eq!(Program::ALL.map(Program::name), weft_abi::program::ALL);
        for program in Program::ALL {
            assert_eq!(Program::from_name(program.name()), Some(program));
        }
        assert_eq!(Program::from_name("from_nowhere"), None);
    }
}
