// SPDX-License-Identifier: Apache-2.0

//! A fake API server: real HTTP with lists in pages, watches, bookmarks, 410, selectors; bytes are counted.
//!
//! It serves the six kinds that an agent watches, from objects that a [`Generate`] writes when they are asked for, and from
//! those that were [put](ApiServer::put). It listens inside a simulated node, on that node's own loopback, and it can be made
//! to lie as API servers, their caches and the proxies in front of them do: see the methods of [`ApiServer`] from
//! [`ApiServer::expire`] on.

mod answer;
mod change;
mod collection;
mod generate;
mod http;
mod kind;
mod list;
mod object;
mod rendered;
mod selector;
mod watch;

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd as _, OwnedFd, RawFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use anyhow::{Context as _, Result};
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};

use crate::{
    bed::{Bed, Options, SHARED},
    binaries::Binaries,
    namespace::Namespace,
};
use collection::Collection;

pub use change::Change;
pub use generate::Population;
pub use kind::Kind;
pub use object::{Generate, Head, Key};

/// Where it listens, on the loopback of each node.
const PORT: u16 = 6443;

/// The server; it and all its connections end when it is dropped.
pub struct ApiServer {
    shared: Arc<Shared>,
}

/// What all connections share.
struct Shared {
    collections: [Collection; Kind::ALL.len()],
    /// The last resource version that was given out.
    version: AtomicU64,
    counts: [Counts; Kind::ALL.len()],
    ended: AtomicBool,
    /// No list is answered.
    held: AtomicBool,
    /// What is to be shut down at the end, by descriptor.
    sockets: Mutex<BTreeMap<RawFd, TcpStream>>,
    requests: Mutex<Vec<String>>,
}

/// What went out about one kind.
#[derive(Default)]
struct Counts {
    list_bytes: AtomicU64,
    watch_bytes: AtomicU64,
}

impl Shared {
    fn collection(&self, kind: Kind) -> &Collection {
        &self.collections[kind as usize]
    }

    /// Shuts `socket` down at the end, if it is there still.
    fn remember(&self, socket: TcpStream) -> RawFd {
        let descriptor = socket.as_raw_fd();
        lock(&self.sockets).insert(descriptor, socket);
        descriptor
    }

    fn counts(&self, kind: Kind) -> &Counts {
        &self.counts[kind as usize]
    }
}

impl Default for ApiServer {
    fn default() -> Self {
        Self::new()
    }
}

impl ApiServer {
    /// A server without objects that listens nowhere yet.
    #[must_use]
    pub fn new() -> Self {
        let shared = Shared {
            collections: std::array::from_fn(|_| Collection::default()),
            version: AtomicU64::new(1000),
            counts: std::array::from_fn(|_| Counts::default()),
            ended: AtomicBool::new(false),
            held: AtomicBool::new(false),
            sockets: Mutex::default(),
            requests: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Listens on the loopback of `node` too.
    ///
    /// # Errors
    /// The node is gone, or something listens there already.
    pub fn listen(&self, node: &Namespace) -> Result<()> {
        let namespace = std::fs::File::open(node.proc("ns/net")).context("open the node's network namespace")?;
        // A thread that changes its namespace is of no use afterwards; what it has opened stays there.
        let opening = thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).context("enter the node's network namespace")?;
            TcpListener::bind((Ipv4Addr::LOCALHOST, PORT)).context("listen on the node's loopback")
        });
        let listener = opening.join().map_err(|_| anyhow::anyhow!("the opening thread panicked"))??;
        let shared = Arc::clone(&self.shared);
        let watched = listener.try_clone().context("duplicate the listener")?;
        thread::spawn(move || accept(&shared, &listener));
        // A listener is shut down like a connection, and its accept(2) ends.
        self.shared.remember(TcpStream::from(OwnedFd::from(watched)));
        Ok(())
    }

    /// Makes a site of nodes whose agents watch this server; they do not run yet.
    ///
    /// # Errors
    /// As [`Bed::idle`].
    pub fn site(&self, options: &Options, binaries: &Binaries) -> Result<Bed> {
        let mut config = json!({
            "source": "kubernetes",
            "apiServer": format!("http://{}", SocketAddr::from((Ipv4Addr::LOCALHOST, PORT))),
            "kubeconfig": format!("{SHARED}/kubeconfig"),
        });
        for (key, value) in options.config.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        let bed = Bed::idle(&Options { config, ..options.clone() }, binaries)?;
        let credentials = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "fake",
            "clusters": [{"name": "fake", "cluster": {"server": "http://127.0.0.1:1"}}],
            "users": [{"name": "fake", "user": {"token": "fake"}}],
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake"}}],
        });
        let path = bed.switch().path(format!("{SHARED}/kubeconfig"));
        std::fs::write(path, credentials.to_string()).context("write the kubeconfig")?;
        for node in bed.nodes() {
            self.listen(node.machine())?;
        }
        Ok(bed)
    }

    /// Serves what `objects` writes beside what was put; only before an agent has listed `kind`.
    pub fn generate(&self, kind: Kind, objects: Arc<dyn Generate>) {
        self.shared.collection(kind).generate(objects);
    }

    /// Makes or replaces an object, and tells the watches.
    ///
    /// # Errors
    /// It has no name.
    pub fn put(&self, kind: Kind, object: Value) -> Result<Change> {
        self.shared.collection(kind).put(&self.shared.version, object)
    }

    /// Takes an object out, and tells the watches.
    ///
    /// # Errors
    /// It is not there.
    pub fn delete(&self, kind: Kind, key: &Key) -> Result<Change> {
        self.shared.collection(kind).delete(&self.shared.version, key)
    }

    /// An object as it is now.
    #[must_use]
    pub fn get(&self, kind: Kind, key: &Key) -> Option<Value> {
        self.shared.collection(kind).get(key)
    }

    /// Bytes of lists and of watches of `kind` that went out, heads of answers not counted.
    #[must_use]
    pub fn bytes(&self, kind: Kind) -> (u64, u64) {
        let counts = self.shared.counts(kind);
        (counts.list_bytes.load(Ordering::Relaxed), counts.watch_bytes.load(Ordering::Relaxed))
    }

    /// Every request so far: method and target.
    #[must_use]
    pub fn requests(&self) -> Vec<String> {
        lock(&self.shared.requests).clone()
    }

    /// How many watches of `kind` there are.
    #[must_use]
    pub fn watches(&self, kind: Kind) -> usize {
        self.shared.collection(kind).watches()
    }

    /// How many lists of all kinds are out to their last byte.
    #[must_use]
    pub fn lists(&self) -> usize {
        self.shared.collections.iter().map(Collection::lists).sum()
    }

    /// Lets every list wait for its answer, or no more.
    pub fn hold_lists(&self, held: bool) {
        self.shared.held.store(held, Ordering::SeqCst);
    }

    /// Tells the watches of `kind` the version that all they know is of.
    pub fn bookmark(&self, kind: Kind) {
        let collection = self.shared.collection(kind);
        collection.inject("BOOKMARK", &watch::bookmark(kind, collection.version(&self.shared.version, false)));
    }

    /// Forgets the history of `kind`: its watches, and those that begin at an older version, are told 410.
    pub fn expire(&self, kind: Kind) {
        self.shared.collection(kind).expire(self.shared.version.load(Ordering::SeqCst));
    }

    /// Closes the watches of `kind` in the middle of nothing.
    pub fn break_watches(&self, kind: Kind) {
        self.shared.collection(kind).break_watches();
    }

    /// The next `count` answers to lists of `kind` end in the middle: after half of the objects of the answer, and of the
    /// last one's bytes.
    pub fn cut_lists(&self, kind: Kind, count: usize) {
        self.shared.collection(kind).cut_lists(count);
    }

    /// The next `count` further pages of lists of `kind` are refused with 410.
    pub fn expire_pages(&self, kind: Kind, count: usize) {
        self.shared.collection(kind).expire_pages(count);
    }

    /// Remembers how `kind` is now, for [`ApiServer::fall_back`].
    pub fn mark(&self, kind: Kind) {
        self.shared.collection(kind).mark(self.shared.version.load(Ordering::SeqCst));
    }

    /// Serves `kind` as it was at the [mark](ApiServer::mark), whatever is put, until [`ApiServer::thaw`]: a cache that is
    /// behind. Watches are told nothing newer; lists that want the latest version get it all the same.
    pub fn fall_back(&self, kind: Kind) {
        self.shared.collection(kind).fall_back();
    }

    /// Ends what [`ApiServer::fall_back`] has begun; the watches go on where they were.
    pub fn thaw(&self, kind: Kind) {
        self.shared.collection(kind).thaw();
    }

    /// Tells the watches of `kind` an event that never was: `event` and `object` as they are, in no store.
    pub fn inject(&self, kind: Kind, event: &'static str, object: &Value) -> Change {
        self.shared.collection(kind).inject(event, object)
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        for socket in lock(&self.shared.sockets).values() {
            // Its peer may have closed it.
            drop(socket.shutdown(Shutdown::Both));
        }
        for collection in &self.shared.collections {
            collection.wake();
        }
    }
}

fn accept(shared: &Arc<Shared>, listener: &TcpListener) {
    for stream in listener.incoming() {
        if shared.ended.load(Ordering::SeqCst) {
            return;
        }
        let Ok(stream) = stream else { continue };
        let Ok(known) = stream.try_clone() else { continue };
        let descriptor = shared.remember(known);
        let shared = Arc::clone(shared);
        thread::spawn(move || {
            // A client that goes away in the middle is no fault of the server.
            drop(answer::serve(&shared, stream));
            if let Some(known) = lock(&shared.sockets).remove(&descriptor) {
                drop(known.shutdown(Shutdown::Both));
            }
        });
    }
}

/// A thread that panicked in a test says so itself.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
