// SPDX-License-Identifier: Apache-2.0
//! Who waits for what becomes of a port.

use std::collections::BTreeMap;

use tokio::sync::oneshot;
use weft_api::{Allocation, Answer, ApiError, AttachmentId, AttachmentSpec};

use crate::attachment::{life::Ask, pending::Pending};

/// Where an answer goes.
pub(super) type Reply = oneshot::Sender<Result<Answer, ApiError>>;

/// What somebody asked for.
pub(super) enum Asked {
    Allocate(AttachmentSpec, Reply),
    Attach(Reply),
    Del(Reply),
    Gc(Garbage),
    Record(Pending),
}

/// Attachments that are released together; answered when the last one is.
pub(super) struct Garbage {
    reply: Reply,
    ids: Vec<AttachmentId>,
    left: usize,
    failed: Option<ApiError>,
}

/// Everybody who waits, by number.
#[derive(Default)]
pub(super) struct Asks {
    last: u64,
    open: BTreeMap<Ask, Asked>,
}

impl Asks {
    /// The number under which to ask ports.
    pub(super) fn open(&mut self, asked: Asked) -> Ask {
        self.last += 1;
        self.open.insert(Ask(self.last), asked);
        Ask(self.last)
    }

    /// What addresses were asked for.
    pub(super) fn spec(&self, ask: Ask) -> Option<&AttachmentSpec> {
        match self.open.get(&ask)? {
            Asked::Allocate(spec, _) => Some(spec),
            _ => None,
        }
    }

    /// Tells what became of a port; `allocation` is what it has, and `device` the wait for its device, where it has one.
    pub(super) fn answer(
        &mut self,
        ask: Ask,
        result: Result<(), ApiError>,
        allocation: Option<&Allocation>,
        device: Option<impl Future<Output = Result<(), ApiError>> + Send + 'static>,
    ) {
        match self.open.remove(&ask) {
            Some(Asked::Allocate(_, reply)) => {
                let reserved = allocation.cloned().map_or(Answer::Done, Answer::Allocation);
                send(reply, result.map(|()| reserved));
            }
            Some(Asked::Attach(reply)) => answer_attach(reply, result, device),
            Some(Asked::Del(reply)) => send(reply, result.map(|()| Answer::Done)),
            Some(Asked::Gc(garbage)) => self.open.extend(garbage.less_one(result).map(|left| (ask, Asked::Gc(left)))),
            Some(Asked::Record(pending)) => finish(&pending, result),
            None => tracing::error!(?ask, "nobody waits for an answer; this is a bug of weft-agent"),
        }
    }
}

impl Garbage {
    /// Releases of all `ids`; none where there is nothing to wait for, which is answered at once.
    pub(super) fn of(ids: &[AttachmentId], reply: Reply) -> Option<Self> {
        if ids.is_empty() {
            send(reply, Ok(Answer::Released(Vec::new())));
            return None;
        }
        Some(Self { reply, ids: ids.to_vec(), left: ids.len(), failed: None })
    }

    /// One of them is released or cannot be; none: it was the last, and all is answered.
    fn less_one(self, result: Result<(), ApiError>) -> Option<Self> {
        let Self { reply, ids, left, failed } = self;
        let (left, failed) = (left - 1, failed.or(result.err()));
        if left > 0 {
            return Some(Self { reply, ids, left, failed });
        }
        send(reply, failed.map_or(Ok(Answer::Released(ids)), Err));
        None
    }
}

/// Once the port's device serves, where it has one; nobody else waits for that.
fn answer_attach(
    reply: Reply,
    served: Result<(), ApiError>,
    device: Option<impl Future<Output = Result<(), ApiError>> + Send + 'static>,
) {
    match (served, device) {
        (Ok(()), Some(device)) => drop(tokio::spawn(async move { send(reply, device.await.map(|()| Answer::Done)) })),
        (served, _) => send(reply, served.map(|()| Answer::Done)),
    }
}

/// A recorded release stands until it is done.
fn finish(pending: &Pending, result: Result<(), ApiError>) {
    let id = &pending.id;
    match result.map(|()| pending.finish()) {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%id, %error, "cannot remove the record of a finished release"),
        Err(error) => tracing::warn!(%id, %error, "cannot finish a recorded release"),
    }
}

/// A client that went away needs no answer.
pub(super) fn send(reply: Reply, answer: Result<Answer, ApiError>) {
    drop(reply.send(answer));
}
