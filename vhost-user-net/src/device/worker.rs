// SPDX-License-Identifier: Apache-2.0
//! One thread per queue pair. It owns its two rings and its queue of the port; nothing on its path is shared or locked.
//!
//! The session changes a pair by sending it a closure, which runs between two batches, and waits for the answer.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use thiserror::Error;

use super::pair::{Job, PORT, Pair, WAKE};
use crate::port::Port;

/// Why a pair cannot be changed.
#[derive(Debug, Error)]
pub enum WorkerError {
    /// The thread is gone.
    #[error("the thread of queue pair {0} is gone")]
    Gone(usize),
    /// The thread cannot be made.
    #[error("{call} for the thread of a queue pair")]
    Setup {
        /// What failed.
        call: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// The session's handle of a pair's thread.
#[derive(Debug)]
pub struct Worker {
    index: usize,
    jobs: Option<Sender<Job>>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts the thread of pair `index`. `poll_for` is how long it looks for work before it sleeps.
    ///
    /// # Errors
    /// When a descriptor or the thread cannot be made.
    pub fn spawn(index: usize, port: Arc<dyn Port>, poll_for: Duration) -> Result<Self, WorkerError> {
        let setup = |call| move |error: Errno| WorkerError::Setup { call, source: error.into() };
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let wake = Arc::new(EventFd::from_value_and_flags(0, flags).map_err(setup("eventfd"))?);
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(setup("epoll_create"))?;
        let watch = |fd: &dyn AsFd, token, flags| epoll.add(fd.as_fd(), EpollEvent::new(flags, token));
        watch(&*wake, WAKE, EpollFlags::EPOLLIN).map_err(setup("epoll_ctl of the wake descriptor"))?;
        let both = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        watch(&port.poll_fd(), PORT, both).map_err(setup("epoll_ctl of the port"))?;
        let (jobs, inbox) = channel();
        let pair = Pair::new(index, port, epoll, poll_for);
        let seen = Arc::clone(&wake);
        let thread = std::thread::Builder::new()
            .name(format!("pair-{index}"))
            .spawn(move || pair.serve(&inbox, &seen))
            .map_err(|source| WorkerError::Setup { call: "clone", source })?;
        Ok(Self { index, jobs: Some(jobs), wake, thread: Some(thread) })
    }

    /// Runs `job` on the pair's thread and returns its result.
    ///
    /// # Errors
    /// When the thread is gone.
    pub fn run<R: Send + 'static>(&self, job: impl FnOnce(&mut Pair) -> R + Send + 'static) -> Result<R, WorkerError> {
        let (answer, result) = channel();
        let job: Job = Box::new(move |pair| {
            // Nobody waits for the answer any more when this fails.
            answer.send(job(pair)).unwrap_or_default();
        });
        let gone = || WorkerError::Gone(self.index);
        self.jobs.as_ref().ok_or_else(gone)?.send(job).map_err(|_| gone())?;
        self.wake.write(1).map_err(|_| gone())?;
        result.recv().map_err(|_| gone())
    }
}

impl std::ops::Drop for Worker {
    fn drop(&mut self) {
        self.jobs = None;
        let woken = self.wake.write(1).is_ok();
        if let Some(thread) = self.thread.take().filter(|_| woken)
            && thread.join().is_err()
        {
            tracing::error!(pair = self.index, "the thread of a queue pair panicked");
        }
    }
}
