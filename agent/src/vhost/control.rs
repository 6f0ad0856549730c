// SPDX-License-Identifier: Apache-2.0
//! The control socket of a device: a line in, JSON out.

use std::{io, path::Path, time::Duration};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    time::{sleep, timeout},
};

/// How long a device may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// The report of 16 queue pairs has some 16 KiB.
const MAX_ANSWER: u64 = 1 << 20;
/// Between two tries to reach a device that has just been started.
const PAUSE: Duration = Duration::from_millis(10);

/// What the device says of itself.
///
/// # Errors
/// Nobody listens, or the answer is not one.
pub(super) async fn metrics(path: &Path) -> io::Result<Value> {
    match timeout(PATIENCE, ask(path)).await {
        Ok(answer) => answer,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", PATIENCE.as_secs()))),
    }
}

/// Returns once the device of this process answers.
pub(super) async fn until_answered(path: &Path, pid: u32) {
    loop {
        // A socket that somebody else has left answers nothing, or for another process.
        if metrics(path).await.is_ok_and(|metrics| metrics["pid"] == pid) {
            return;
        }
        sleep(PAUSE).await;
    }
}

async fn ask(path: &Path) -> io::Result<Value> {
    let mut stream = UnixStream::connect(path).await?;
    stream.write_all(b"metrics\n").await?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer).await?;
    Ok(serde_json::from_slice(&answer)?)
}
