// SPDX-License-Identifier: Apache-2.0
//! When connections are over.

use serde::{Deserialize, Serialize};
use weft_abi::{Timeouts, ticks, timeout_seconds};

use super::check::in_range;

/// Longer than `makes_room` waits for an answer: no connection is over before.
const LEAST: u32 = 4;

/// 30 days.
const MOST: u32 = 30 * 24 * 60 * 60;

/// Seconds without a packet of either direction after which a connection is over; [`Timeouts`] tells of which kind.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct ConnectionTimeouts {
    /// See [`Timeouts::established`].
    pub established_seconds: u32,
    /// See [`Timeouts::transitory`].
    pub transitory_seconds: u32,
    /// See [`Timeouts::datagram`].
    pub datagram_seconds: u32,
    /// See [`Timeouts::unanswered`].
    pub unanswered_seconds: u32,
    /// See [`Timeouts::brief`].
    pub brief_seconds: u32,
}

impl Default for ConnectionTimeouts {
    fn default() -> Self {
        Self {
            established_seconds: timeout_seconds::ESTABLISHED,
            transitory_seconds: timeout_seconds::TRANSITORY,
            datagram_seconds: timeout_seconds::DATAGRAM,
            unanswered_seconds: timeout_seconds::UNANSWERED,
            brief_seconds: timeout_seconds::BRIEF,
        }
    }
}

impl ConnectionTimeouts {
    /// As the programs have them.
    #[must_use]
    pub const fn ticks(&self) -> Timeouts {
        Timeouts {
            established: ticks(self.established_seconds),
            transitory: ticks(self.transitory_seconds),
            datagram: ticks(self.datagram_seconds),
            unanswered: ticks(self.unanswered_seconds),
            brief: ticks(self.brief_seconds),
        }
    }

    /// The first that cannot be right, and why.
    pub(super) fn check(&self) -> Result<(), (&'static str, String)> {
        in_range(self.brief_seconds, LEAST..=MOST).map_err(|problem| ("connectionTimeouts.briefSeconds", problem))?;
        let others = [
            ("connectionTimeouts.establishedSeconds", self.established_seconds),
            ("connectionTimeouts.transitorySeconds", self.transitory_seconds),
            ("connectionTimeouts.datagramSeconds", self.datagram_seconds),
            ("connectionTimeouts.unansweredSeconds", self.unanswered_seconds),
        ];
        for (field, seconds) in others {
            in_range(seconds, self.brief_seconds..=MOST)
                .map_err(|problem| (field, format!("{problem}; briefSeconds is the least")))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_what_the_programs_take_without_a_configuration() {
        assert_eq!(ConnectionTimeouts::default().ticks(), Timeouts::DEFAULT);
    }

    #[test]
    fn a_timeout_is_not_shorter_than_was_asked_for() {
        let tick = f64::from(1 << weft_abi::TICK_SHIFT) / 1e9;
        for seconds in [1, LEAST, 10, 86_400, MOST] {
            let over = f64::from(ticks(seconds)) * tick - f64::from(seconds);
            assert!((0.0..tick).contains(&over), "{seconds} s are {over} s more");
        }
    }
}
