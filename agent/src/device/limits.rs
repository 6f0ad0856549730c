// SPDX-License-Identifier: Apache-2.0
//! What one port may take of what all share, from the configuration and the sizes of the maps.

use weft_abi::Config;

use crate::config::PortLimits;

/// The limits as the programs have them; see the fields of [`Config`]. The default is no limits.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Limits {
    share: [u32; 2],
    most: [u32; 2],
    floor: [u32; 2],
    rates: [u32; 3],
}

impl Limits {
    /// For flow tables of these many entries (IPv4, IPv6) and at most `ports` ports.
    ///
    /// A quarter of each table is kept for the floors of all ports, so that one that has less than its floor always finds room.
    #[must_use]
    pub fn new(settings: &PortLimits, flows: [u32; 2], ports: u32) -> Self {
        // Two entries a connection.
        let connections = flows.map(|entries| entries / 2);
        let percent = u64::from(settings.flow_table_percent);
        let share = |connections: u32| {
            // 0 says that there is no limit.
            let least = u64::from(percent != 0);
            u32::try_from((u64::from(connections) * percent / 100).max(least)).unwrap_or(u32::MAX)
        };
        Self {
            share: connections.map(share),
            most: connections.map(|connections| connections - connections / 4),
            floor: connections.map(|connections| (connections / 4 / ports.max(1)).max(1)),
            rates: [settings.flows_per_second, settings.answers_per_second, settings.fragmented_per_second],
        }
    }

    /// Writes them to the programs' facts.
    pub fn put(&self, config: &mut Config) {
        (config.flow_share, config.flow_most, config.flow_floor) = (self.share, self.most, self.floor);
        [config.flow_rate, config.answer_rate, config.fragment_rate] = self.rates;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_gets_a_quarter_and_all_floors_fit_beside_the_rest() {
        let limits = Limits::new(&PortLimits::default(), [1 << 17, 1 << 16], 512);
        let mut config = Config::default();
        limits.put(&mut config);
        assert_eq!((config.flow_share, config.flow_most), ([16_384, 8192], [49_152, 24_576]));
        assert_eq!(config.flow_floor, [32, 16]);
        assert_eq!(config.flow_most[0] + config.flow_floor[0] * 512, 1 << 16);
        assert_eq!((config.flow_rate, config.answer_rate, config.fragment_rate), (10_000, 100, 10_000));
    }

    #[test]
    fn no_percentage_is_no_limit() {
        let settings = PortLimits { flow_table_percent: 0, flows_per_second: 0, ..PortLimits::default() };
        let mut config = Config::default();
        Limits::new(&settings, [1 << 17, 1 << 16], 512).put(&mut config);
        assert_eq!((config.flow_share, config.flow_rate), ([0, 0], 0));
    }
}
