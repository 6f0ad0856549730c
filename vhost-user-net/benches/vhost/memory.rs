// SPDX-License-Identifier: Apache-2.0
//! Resident memory of the device beside the guest's.

use std::time::Duration;

use anyhow::{Context, Result};
use weft_test_vmm::{Task, Work};

use crate::frames::LARGE;
use crate::peer::host::Host;
use crate::report::Report;
use crate::served::Served;
use crate::settings::Settings;

/// How long each pair works.
const TIME: Duration = Duration::from_millis(100);

pub(crate) fn rows(host: &Host, settings: &Settings, report: &mut Report) -> Result<()> {
    if settings.wants("rss_1") {
        report.alone("rss_1", "kB", &[resident(host, settings, 1)?]);
    }
    if settings.wants("rss_4") {
        // In a namespace of its own, with a tap of four queues.
        let host = Host::new(4)?;
        report.alone("rss_4", "kB", &[resident(&host, settings, 4)?]);
    }
    Ok(())
}

fn resident(host: &Host, settings: &Settings, pairs: usize) -> Result<f64> {
    let count = pairs.to_string();
    let mut served = Served::with_pairs(host, settings, pairs, &["--queues", &count])?;
    let bytes = LARGE.bytes();
    served.machine.set_template(&bytes)?;
    for pair in 0..pairs as u32 {
        for task in [Task::Transmit, Task::Receive] {
            served.machine.start(Work { pair, frame_len: bytes.len() as u32, count: 0, ..Work::new(task) })?;
            std::thread::sleep(TIME);
            served.machine.stop()?;
        }
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", served.backend.child.id()))?;
    let field = |name: &str| -> Result<f64> {
        let line = status.lines().find(|line| line.starts_with(name)).with_context(|| name.to_owned())?;
        Ok(line.split_whitespace().nth(1).context("value")?.parse()?)
    };
    let (own, files) = (field("RssAnon:")?, field("RssFile:")?);
    println!("{:14} {own} kB of its own, {files} kB of the program and its libraries", format!("{pairs} pair(s)"));
    // The rest is the guest's memory.
    Ok(own + files)
}
