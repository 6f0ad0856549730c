// SPDX-License-Identifier: Apache-2.0

//! Who looks whether an attack arrived.

use std::{
    io,
    net::UdpSocket,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use weft_probe::frames::FrameReceiver;

/// How long what must not come is waited for after what was sent behind it has come.
const GRACE: Duration = Duration::from_millis(120);
/// How long one honest packet is waited for before it is sent again.
const ROUND: Duration = Duration::from_millis(400);
/// How often an honest packet is sent: the first may be lost while a neighbour is looked for, and on a busy machine an agent takes seconds to
/// mend a port.
const ROUNDS: usize = 40;

/// A text that no other packet of the machine has in it.
pub(super) type Mark = [u8; 16];

/// The mark of an attack, or of its honest twin.
pub(super) fn mark() -> Mark {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let text = format!("<weft {:>9}>", NEXT.fetch_add(1, Ordering::Relaxed));
    let mut mark = [b'.'; 16];
    let length = text.len().min(16);
    mark[..length].copy_from_slice(&text.as_bytes()[..length]);
    mark
}

/// Whether the mark is in it.
pub(super) fn has(bytes: &[u8], mark: &Mark) -> bool {
    bytes.windows(mark.len()).any(|window| window == mark)
}

/// Something that packets arrive at.
pub(super) trait Arrivals {
    /// The next one, with all that is known of it; none: nothing came within `patience`.
    fn next(&self, patience: Duration) -> Result<Option<Vec<u8>>>;
}

impl Arrivals for FrameReceiver {
    fn next(&self, patience: Duration) -> Result<Option<Vec<u8>>> {
        self.receive(patience).context("see frames")
    }
}

impl Arrivals for UdpSocket {
    fn next(&self, patience: Duration) -> Result<Option<Vec<u8>>> {
        self.set_read_timeout(Some(patience.max(Duration::from_millis(1))))?;
        let mut buffer = vec![0; 9000];
        match self.recv_from(&mut buffer) {
            Ok((read, _)) => {
                buffer.truncate(read);
                Ok(Some(buffer))
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => Ok(None),
            // An ICMP error about what this socket sent.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// Looks for marks at one place.
pub(super) struct Witness<'a> {
    place: String,
    arrivals: &'a dyn Arrivals,
}

impl<'a> Witness<'a> {
    /// A witness at `place`, a name for messages.
    pub(super) fn new(place: impl Into<String>, arrivals: &'a dyn Arrivals) -> Self {
        Self { place: place.into(), arrivals }
    }

    /// Everything that comes within `patience`, until `enough`.
    fn collect(&self, patience: Duration, enough: impl Fn(&[u8]) -> bool) -> Result<Vec<Vec<u8>>> {
        let deadline = Instant::now() + patience;
        let mut seen = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(bytes) = self.arrivals.next(left)? else { return Ok(seen) };
            let last = enough(&bytes);
            seen.push(bytes);
            if last || left.is_zero() {
                return Ok(seen);
            }
        }
    }

    /// That what `attack` sends does not arrive and what `honest` sends does. The honest packet is sent behind the attack,
    /// on as much of the same way as there is: that it arrives shows that the witness can see, and that the attack had the
    /// time to.
    pub(super) fn refuses(
        &self,
        attack: impl FnOnce(&Mark) -> Result<()>,
        honest: impl Fn(&Mark) -> Result<()>,
    ) -> Result<()> {
        let (forged, twin) = (mark(), mark());
        attack(&forged).context("send the attack")?;
        let mut seen = Vec::new();
        let (mut arrived, mut sent) = (false, Ok(()));
        for _ in 0..ROUNDS {
            // A device that is being mended is down for a moment.
            sent = honest(&twin);
            seen.extend(self.collect(ROUND, |bytes| has(bytes, &twin))?);
            arrived = seen.last().is_some_and(|bytes| has(bytes, &twin));
            if arrived {
                break;
            }
        }
        seen.extend(self.collect(GRACE, |_| false)?);
        let arrivals: Vec<&Vec<u8>> = seen.iter().filter(|bytes| has(bytes, &forged)).collect();
        if !arrived {
            sent.context("send the honest packet")?;
            bail!("nothing is shown: the honest packet did not arrive at {}", self.place);
        }
        if let Some(first) = arrivals.first() {
            let head: String = first.iter().take(74).map(|byte| format!("{byte:02x}")).collect();
            bail!("the attack arrived at {}, {} times, first as {head}", self.place, arrivals.len());
        }
        Ok(())
    }

    /// That what `send` sends arrives; the first arrival that has its mark.
    pub(super) fn sees(&self, send: impl Fn(&Mark) -> Result<()>) -> Result<Vec<u8>> {
        let mark = mark();
        self.sees_what(|| send(&mark), |bytes| has(bytes, &mark))
    }

    /// That something arrives that `meant` knows, when `send` was called some times at most; the first such arrival.
    pub(super) fn sees_what(&self, send: impl Fn() -> Result<()>, meant: impl Fn(&[u8]) -> bool) -> Result<Vec<u8>> {
        for _ in 0..ROUNDS {
            send()?;
            let seen = self.collect(ROUND, &meant)?;
            if let Some(found) = seen.into_iter().next_back().filter(|bytes| meant(bytes)) {
                return Ok(found);
            }
        }
        bail!("what was waited for did not arrive at {}", self.place)
    }
}
