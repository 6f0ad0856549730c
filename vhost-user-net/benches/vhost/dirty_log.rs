// SPDX-License-Identifier: Apache-2.0
//! What a migration costs: the device with the dirty log beside the device without.

use anyhow::Result;

use crate::frames::{FULL, Kind, LARGE, SMALL};
use crate::peer::host::Host;
use crate::report::{Rate, Report};
use crate::settings::Settings;
use crate::{receive, transmit};

type Measure = fn(&Host, &Settings, Kind, bool) -> Result<Rate>;

pub(crate) fn rows(host: &Host, settings: &Settings, report: &mut Report) -> Result<()> {
    let rows: [(_, Kind, Measure); 3] = [
        ("rx_1500_log", FULL, receive::device),
        ("rx_gso_log", LARGE, receive::device),
        ("tx_64_log", SMALL, transmit::device),
    ];
    for (name, kind, measure) in rows {
        if settings.wants(name) {
            let [without, with] = [false, true].map(|log| move || measure(host, settings, kind, log));
            let pairs = settings.pairs(without, with)?;
            report.rates(name, kind, "without log", &pairs);
        }
    }
    Ok(())
}
