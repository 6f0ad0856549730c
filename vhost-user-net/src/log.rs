// SPDX-License-Identifier: Apache-2.0
//! The log, on standard error: as many lines as people read, whatever the guest and the front end do.
//!
//! A front end that connects and hangs up in a loop, or a guest that breaks its rings again and again, would have a line or
//! more logged for each time, and fill the file behind standard error. Beyond some lines at once and one a second they are
//! left out and counted; the next line that is written says so. What an operator asks for (`RUST_LOG=debug`) is not bounded.

use std::io::{self, IsTerminal as _, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::args::LogFormat;
use crate::pace::Pace;

/// Lines at once: start and end of 16 queue pairs, three times over.
const BURST: u32 = 200;
/// Between two lines after that.
const PERIOD: Duration = Duration::from_secs(1);

/// Starts logging to standard error.
pub fn start(format: LogFormat) {
    let filter = EnvFilter::builder().with_default_directive(Level::INFO.into()).from_env_lossy();
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(Bounded::new(format, io::stderr));
    match format {
        LogFormat::Text => log.with_target(false).init(),
        LogFormat::Json => log.json().init(),
    }
}

/// Writers of one line each.
struct Bounded<O> {
    format: LogFormat,
    open: O,
    state: Mutex<State>,
}

struct State {
    pace: Pace,
    /// Lines since the last one that was written.
    left_out: u64,
}

impl<O> Bounded<O> {
    fn new(format: LogFormat, open: O) -> Self {
        Self { format, open, state: Mutex::new(State { pace: Pace::new(BURST, PERIOD), left_out: 0 }) }
    }

    /// Whether a line may be written now, with the lines left out before it.
    fn admits(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match state.pace.take(now) {
            Ok(()) => Some(std::mem::take(&mut state.left_out)),
            Err(_) => {
                state.left_out += 1;
                None
            }
        }
    }

    fn note(&self, left_out: u64) -> String {
        match self.format {
            LogFormat::Text => format!("  WARN {left_out} lines were left out: more than one a second\n"),
            LogFormat::Json => {
                let fields =
                    serde_json::json!({"message": "lines were left out: more than one a second", "lines": left_out});
                format!("{}\n", serde_json::json!({"level": "WARN", "fields": fields}))
            }
        }
    }
}

impl<'a, O, W> MakeWriter<'a> for Bounded<O>
where
    O: Fn() -> W + 'a,
    W: Write,
{
    type Writer = Line<W>;

    fn make_writer(&'a self) -> Line<W> {
        Line(Some((self.open)()))
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Line<W> {
        // The more verbose a level, the greater it is.
        if *meta.level() > Level::INFO {
            return self.make_writer();
        }
        let Some(left_out) = self.admits(Instant::now()) else { return Line(None) };
        let mut output = (self.open)();
        if left_out > 0 {
            // Nobody is left to be told of a log that cannot be written.
            output.write_all(self.note(left_out).as_bytes()).unwrap_or_default();
        }
        Line(Some(output))
    }
}

/// Where one line goes; none: it is left out.
struct Line<W>(Option<W>);

impl<W: Write> Write for Line<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.as_mut().map_or(Ok(bytes.len()), |output| output.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.as_mut().map_or(Ok(()), Write::flush)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};
    use std::time::{Duration, Instant};

    use super::{BURST, Bounded};
    use crate::args::LogFormat;

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, work: impl FnOnce()) -> String {
        let memory = Memory::default();
        let output = memory.clone();
        let log = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::DEBUG)
            .with_ansi(false)
            .with_writer(Bounded::new(format, move || output.clone()));
        match format {
            LogFormat::Text => tracing::subscriber::with_default(log.finish(), work),
            LogFormat::Json => tracing::subscriber::with_default(log.json().finish(), work),
        }
        let bytes = memory.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_flood_of_lines_is_cut_and_what_was_asked_for_is_not() {
        let text = logged(LogFormat::Text, || {
            for turn in 0..100_000 {
                tracing::warn!(turn, "again");
            }
        });
        let again = text.lines().filter(|line| line.contains("again")).count();
        // The test itself takes a moment, in which some more pass.
        assert!((BURST as usize..1000).contains(&again), "{again} lines");
        let debug = logged(LogFormat::Text, || (0..1000).for_each(|turn| tracing::debug!(turn, "asked for")));
        assert_eq!(debug.lines().count(), 1000);
    }

    #[test]
    fn what_was_left_out_is_counted() {
        let bounded = Bounded::new(LogFormat::Json, io::sink);
        let start = Instant::now();
        for _ in 0..BURST {
            assert_eq!(bounded.admits(start), Some(0));
        }
        for _ in 0..5 {
            assert_eq!(bounded.admits(start), None);
        }
        assert_eq!(bounded.admits(start + Duration::from_secs(1)), Some(5));
        assert_eq!(bounded.admits(start + Duration::from_secs(1)), None);
        let note: serde_json::Value = serde_json::from_str(&bounded.note(5)).unwrap();
        assert_eq!(note["fields"]["lines"], 5);
        assert!(Bounded::new(LogFormat::Text, io::sink).note(5).contains("5 lines were left out"));
    }

    #[test]
    fn every_line_of_a_flood_in_json_is_json() {
        let text = logged(LogFormat::Json, || (0..1000).for_each(|turn| tracing::info!(turn, "again")));
        for line in text.lines() {
            serde_json::from_str::<serde_json::Value>(line).unwrap();
        }
    }
}
