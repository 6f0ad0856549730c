// SPDX-License-Identifier: Apache-2.0
//! The control socket: a Unix stream socket for operators and the agent.
//!
//! One request per connection: a line in, JSON out, end of stream.
//!
//! | Request | Answer |
//! |---|---|
//! | `metrics` | one object: state of the device, counters of every ring |
//! | `capabilities` | one object: what the device offers |
//! | `trace N` | up to N objects, one a line, for the next N frames; ends when the client hangs up |

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use crate::footprint::Footprint;
use crate::metrics::Metrics;
use crate::trace::Tracer;

/// How long a client may take to ask and to take the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often a trace looks whether its client is still there.
const LOOK: Duration = Duration::from_millis(200);
const MAX_CLIENTS: usize = 4;
const MAX_REQUEST: u64 = 64;
const MAX_TRACE: u32 = 1_000_000;

/// What the control socket reports on.
#[derive(Debug)]
pub struct Control {
    /// Counters and state.
    pub metrics: Arc<Metrics>,
    /// The process's memory.
    pub footprint: Footprint,
    /// The switch for following frames.
    pub tracer: Arc<Tracer>,
    /// What `capabilities` answers.
    pub capabilities: serde_json::Value,
}

impl Control {
    /// Answers on this socket from a thread of its own, for the rest of the process's life.
    ///
    /// # Errors
    /// When the thread cannot be made.
    pub fn spawn(self, listener: UnixListener) -> io::Result<()> {
        listener.set_nonblocking(false)?;
        let control = Arc::new(self);
        let clients = Arc::new(AtomicUsize::new(0));
        std::thread::Builder::new().name("control".into()).spawn(move || {
            for stream in listener.incoming() {
                match stream {
                    Ok(stream) => control.admit(stream, &clients),
                    Err(error) => {
                        tracing::warn!(%error, "accept on the control socket");
                        std::thread::sleep(LOOK);
                    }
                }
            }
        })?;
        Ok(())
    }

    /// Serves a client on a thread of its own, unless there are too many.
    fn admit(self: &Arc<Self>, stream: UnixStream, clients: &Arc<AtomicUsize>) {
        if clients.fetch_add(1, Ordering::AcqRel) >= MAX_CLIENTS {
            clients.fetch_sub(1, Ordering::AcqRel);
            tracing::warn!("more than {MAX_CLIENTS} clients on the control socket");
            return;
        }
        let (control, count) = (Arc::clone(self), Arc::clone(clients));
        let spawned = std::thread::Builder::new().name("control-client".into()).spawn(move || {
            if let Err(error) = control.serve(&stream) {
                tracing::debug!(%error, "control client");
            }
            count.fetch_sub(1, Ordering::AcqRel);
        });
        if let Err(error) = spawned {
            clients.fetch_sub(1, Ordering::AcqRel);
            tracing::warn!(%error, "thread of a control client");
        }
    }

    fn serve(&self, stream: &UnixStream) -> io::Result<()> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut line = String::new();
        BufReader::new(stream.take(MAX_REQUEST)).read_line(&mut line)?;
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["metrics"] => answer(stream, &self.report()),
            ["capabilities"] => answer(stream, &self.capabilities),
            ["trace", count] => match count.parse() {
                Ok(count @ 1..=MAX_TRACE) => self.trace(stream, count),
                _ => refuse(stream, &format!("trace: {count:?} is not a number from 1 to {MAX_TRACE}")),
            },
            _ => refuse(stream, "requests are: metrics, capabilities, trace N"),
        }
    }

    fn report(&self) -> serde_json::Value {
        let mut report = self.metrics.report();
        if let (Some(map), Some(resident)) = (report.as_object_mut(), self.footprint.resident()) {
            map.insert("rss_bytes".into(), (resident.own + resident.files).into());
            map.insert("rss_own_bytes".into(), resident.own.into());
        }
        report
    }

    fn trace(&self, stream: &UnixStream, count: u32) -> io::Result<()> {
        let frames = self.tracer.start(count);
        let result = loop {
            match frames.recv_timeout(LOOK) {
                Ok(record) => {
                    if let Err(error) = answer(stream, &record) {
                        break Err(error);
                    }
                }
                Err(RecvTimeoutError::Timeout) if is_open(stream) => {}
                Err(_) => break Ok(()),
            }
        };
        self.tracer.stop();
        result
    }
}

fn answer(mut stream: &UnixStream, value: &impl serde::Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    stream.write_all(&line)
}

fn refuse(stream: &UnixStream, error: &str) -> io::Result<()> {
    answer(stream, &serde_json::json!({ "error": error }))
}

fn is_open(mut stream: &UnixStream) -> bool {
    if stream.set_nonblocking(true).is_err() {
        return false;
    }
    let open = !matches!(stream.read(&mut [0; 1]), Ok(0));
    open && stream.set_nonblocking(false).is_ok()
}
