// SPDX-License-Identifier: Apache-2.0
//! The command line.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use weft_test_vmm::Kind;

use crate::report::Pair;

/// What to measure, and how.
pub(crate) struct Settings {
    /// Where to write the table.
    pub(crate) json: Option<String>,
    only: Option<String>,
    /// Keep others off the processors.
    pub(crate) real_time: bool,
    /// Of one measurement that has no end of its own.
    pub(crate) time: Duration,
    /// Measurements of each kind.
    pub(crate) rounds: usize,
    /// What the guest runs on.
    pub(crate) front_end: Kind,
}

impl Settings {
    pub(crate) fn from_arguments() -> Result<Self> {
        let time = Duration::from_millis(300);
        let mut settings = Self { json: None, only: None, real_time: false, time, rounds: 25, front_end: Kind::Kvm };
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
            match arg.as_str() {
                "--json" => settings.json = Some(value()?),
                "--only" => settings.only = Some(value()?),
                "--seconds" => settings.time = Duration::from_secs_f64(value()?.parse()?),
                "--rounds" => settings.rounds = value()?.parse()?,
                "--front-end" => settings.front_end = kind(&value()?)?,
                "--real-time" => settings.real_time = true,
                // cargo's own.
                "--bench" => {}
                other => bail!("unknown argument {other}"),
            }
        }
        ensure!(settings.rounds > 0, "--rounds is 0");
        Ok(settings)
    }

    /// Whether a row whose name begins like this is wanted.
    pub(crate) fn wants(&self, row: &str) -> bool {
        self.only.as_ref().is_none_or(|only| row.starts_with(only.as_str()))
    }

    /// Measures both as often as was asked for, right after one another: who goes first alternates.
    pub(crate) fn pairs<T>(
        &self,
        mut baseline: impl FnMut() -> Result<T>,
        mut value: impl FnMut() -> Result<T>,
    ) -> Result<Vec<Pair<T>>> {
        let mut round = 0;
        self.repeat(|| {
            round += 1;
            if round % 2 == 0 {
                let value = value()?;
                return Ok(Pair { baseline: baseline()?, value });
            }
            Ok(Pair { baseline: baseline()?, value: value()? })
        })
    }

    /// Measures as often as was asked for.
    pub(crate) fn repeat<T>(&self, mut once: impl FnMut() -> Result<T>) -> Result<Vec<T>> {
        (0..self.rounds).map(|_| once()).collect()
    }
}

fn kind(name: &str) -> Result<Kind> {
    match name {
        "kvm" => Ok(Kind::Kvm),
        "thread" => Ok(Kind::Thread),
        other => bail!("--front-end is kvm or thread, not {other}"),
    }
}
