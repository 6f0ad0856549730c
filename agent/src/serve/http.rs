// SPDX-License-Identifier: Apache-2.0
//! A small HTTP server for probes and scrapes: one request per connection, every connection is accepted, and when there are too
//! many the one that has been silent for longest goes. Idle clients keep nobody out. Listeners may share their connections: how many
//! file descriptors clients take does not grow with the number of ports then.

use std::{
    convert::Infallible,
    fmt,
    future::Future,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http_body_util::Full;
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::{sleep, timeout},
};

/// Connections at a time, of one listener, or of those that share them.
pub(super) const MAX_CONNECTIONS: usize = 64;
/// A client that takes longer for its request is cut off.
const REQUEST_PATIENCE: Duration = Duration::from_secs(5);
/// A client that takes longer for everything is cut off: metrics of many devices take two seconds.
const PATIENCE: Duration = Duration::from_secs(15);

/// What is answered.
pub(super) type Reply = Response<Full<Bytes>>;

struct Connection {
    task: JoinHandle<()>,
    /// Its request has come.
    is_asking: Arc<AtomicBool>,
}

/// Connections that are open, oldest first.
#[derive(Clone, Default)]
pub(super) struct Connections(Arc<Mutex<Vec<Connection>>>);

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Connections").field(&self.lock().len()).finish()
    }
}

impl Connections {
    fn lock(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes one more; where there are too many, another one goes.
    fn add(&self, conversation: impl Future<Output = ()> + Send + 'static, is_asking: Arc<AtomicBool>) {
        let mut open = self.lock();
        open.retain(|connection| !connection.task.is_finished());
        if open.len() >= MAX_CONNECTIONS {
            let silent = open.iter().position(|connection| !connection.is_asking.load(Ordering::Relaxed));
            open.remove(silent.unwrap_or(0)).task.abort();
        }
        open.push(Connection { task: tokio::spawn(conversation), is_asking });
    }

    /// How many there are.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.lock().len()
    }
}

/// Answers the requests of all connections by `answer`, for ever.
pub(super) async fn serve<A, F>(listener: TcpListener, answer: A)
where
    A: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Reply> + Send + 'static,
{
    serve_among(listener, Connections::default(), answer).await;
}

/// As [`serve`], of a listener whose connections count together with those of others.
pub(super) async fn serve_among<A, F>(listener: TcpListener, connections: Connections, answer: A)
where
    A: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Reply> + Send + 'static,
{
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept an HTTP client");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let is_asking = Arc::new(AtomicBool::new(false));
        connections.add(converse(stream, answer.clone(), is_asking.clone()), is_asking);
    }
}

async fn converse<A, F>(stream: TcpStream, answer: A, is_asking: Arc<AtomicBool>)
where
    A: Fn(Request<Incoming>) -> F,
    F: Future<Output = Reply>,
{
    let service = service_fn(|request| {
        is_asking.store(true, Ordering::Relaxed);
        let reply = answer(request);
        async { Ok::<_, Infallible>(reply.await) }
    });
    let mut server = http1::Builder::new();
    let server = server.timer(TokioTimer::new()).header_read_timeout(REQUEST_PATIENCE).keep_alive(false);
    match timeout(PATIENCE, server.serve_connection(TokioIo::new(stream), service)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "an HTTP client went away"),
        Err(_) => tracing::debug!("an HTTP client took too long"),
    }
}

/// A text.
pub(super) fn text(status: StatusCode, kind: &'static str, text: String) -> Reply {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// 200 or 503, and why, as kube-proxy says it.
pub(super) fn judgement(good: bool, body: &serde_json::Value) -> Reply {
    let status = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut response = text(status, "application/json", format!("{body}\n"));
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
