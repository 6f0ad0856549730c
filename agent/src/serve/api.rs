// SPDX-License-Identifier: Apache-2.0
//! The local API: one JSON object a line over a unix socket; see [`weft_api`].

use std::{fs, io, os::unix::fs::PermissionsExt as _, path::Path, sync::Arc};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{
        UnixListener, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Semaphore, broadcast::error::RecvError},
    task::block_in_place,
};
use weft_api::{Answer, ApiError, ErrorCode, ExplainQuery, Explanation, FlowEvent, MAX_REQUEST, Reply, Request};
use weft_dataplane::Maps;

use super::{Shared, explain, page, report};
use crate::file;

/// Connections at a time.
const MAX_CONNECTIONS: usize = 256;

/// Listens on `path`, in place of a socket that an earlier run has left. Only root may connect.
///
/// # Errors
/// What `bind` and its like say, with the path.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    let named =
        |error: io::Error| io::Error::new(error.kind(), format!("cannot listen on {}: {error}", path.display()));
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(named)?;
    }
    file::remove(path).map_err(named)?;
    let listener = UnixListener::bind(path).map_err(named)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(named)?;
    Ok(listener)
}

/// Serves connections, each in a task of its own, for ever.
pub async fn serve(listener: UnixListener, shared: Arc<Shared>) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let shared = shared.clone();
                tokio::spawn(async move {
                    if let Err(error) = serve_connection(stream, &shared).await {
                        tracing::debug!(%error, "a client of the local api went away");
                    }
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a client of the local api");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve_connection(stream: UnixStream, shared: &Shared) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let mut line;
    loop {
        // Not cleared: one large request must not keep its memory for as long as the connection lasts.
        line = Vec::new();
        (&mut reader).take(MAX_REQUEST as u64).read_until(b'\n', &mut line).await?;
        if line.is_empty() {
            return Ok(());
        }
        if line.last() != Some(&b'\n') {
            let error = invalid(format!("the request is cut off, or longer than {MAX_REQUEST} bytes"));
            return write(&mut writer, &Reply::Error(error)).await;
        }
        match serde_json::from_slice(&line) {
            Ok(Request::Flows { last, follow }) => serve_flows(&mut reader, &mut writer, shared, last, follow).await?,
            Ok(request) => write(&mut writer, &reply(answer(request, shared).await)).await?,
            Err(error) => {
                let error = invalid(format!(
                    "the request does not parse: {error}; use a client of api version {}",
                    weft_api::API_VERSION
                ));
                write(&mut writer, &Reply::Error(error)).await?;
            }
        }
    }
}

async fn answer(request: Request, shared: &Shared) -> Result<Answer, ApiError> {
    match request {
        Request::Hello { oldest, newest } => {
            let agent = env!("CARGO_PKG_VERSION");
            weft_api::agree(oldest, newest, agent).map(|version| Answer::Hello { version, agent: agent.to_owned() })
        }
        Request::Status => report::status(shared).map(|status| Answer::Status(Box::new(status))),
        Request::Summary => report::summary(shared).map(|status| Answer::Status(Box::new(status))),
        Request::List(query) => page::page(&query, shared).await.map(Answer::Page),
        Request::Endpoints => Ok(Answer::Endpoints(report::endpoints(shared))),
        Request::Services => Ok(Answer::Services(block_in_place(|| shared.planner().service_reports()))),
        Request::Policies => Ok(Answer::Policies(block_in_place(|| shared.planner().policy_reports()))),
        Request::Drops => report::drops(shared).map(Answer::Drops),
        Request::Explain(query) => {
            let Some(maps) = shared.maps() else { return ready(shared).and(Err(opening())) };
            let explained = block_in_place(|| explained(shared, &query, maps));
            explained.map(|explanation| Answer::Explanation(Box::new(explanation)))
        }
        Request::Vms => Ok(Answer::Vms(shared.devices.reports().await)),
        Request::Ready => ready(shared).map(|()| Answer::Done),
        Request::Allocate(_) => {
            ready(shared)?;
            shared.ask(request).await
        }
        request => {
            started(shared)?;
            shared.ask(request).await
        }
    }
}

fn ready(shared: &Shared) -> Result<(), ApiError> {
    match &shared.view().not_ready {
        None => Ok(()),
        Some(why) => Err(ApiError { code: ErrorCode::NotReady, message: format!("the agent is not ready: {why}") }),
    }
}

fn explained(shared: &Shared, query: &ExplainQuery, maps: &Maps) -> Result<Explanation, ApiError> {
    let (view, planner) = (shared.view(), shared.planner());
    explain::explain(query, &explain::Known { planner: &planner, attachments: &view.attachments }, maps)
}

fn opening() -> ApiError {
    ApiError { code: ErrorCode::NotReady, message: "the dataplane is not open yet; try again".to_owned() }
}

/// The engine takes requests once the dataplane is open: until then they would only wait.
fn started(shared: &Shared) -> Result<(), ApiError> {
    if shared.maps().is_some() { Ok(()) } else { ready(shared) }
}

async fn serve_flows(
    reader: &mut BufReader<OwnedReadHalf>,
    writer: &mut OwnedWriteHalf,
    shared: &Shared,
    last: usize,
    follow: bool,
) -> io::Result<()> {
    if !follow {
        return write(writer, &Reply::Ok(Answer::Flows(shared.flows.latest(last)))).await;
    }
    let maps = shared.maps().map(AsRef::as_ref);
    let (latest, mut news) = match shared.flows.follow(last, maps) {
        Ok(following) => following,
        Err(error) => return write(writer, &Reply::Error(report::unreadable(error))).await,
    };
    write(writer, &Reply::Ok(Answer::Flows(latest))).await?;
    loop {
        let batch = tokio::select! {
            batch = next_batch(&mut news) => batch,
            // Whatever the client says now, it has had enough.
            _ = reader.fill_buf() => return Ok(()),
        };
        let Some(batch) = batch else { return Ok(()) };
        write(writer, &Reply::Ok(Answer::Flows(batch))).await?;
    }
}

/// What has come since the last call; waits for one event.
async fn next_batch(news: &mut tokio::sync::broadcast::Receiver<FlowEvent>) -> Option<Vec<FlowEvent>> {
    let mut batch = Vec::new();
    loop {
        match news.recv().await {
            Ok(event) => batch.push(event),
            // A reader that is too slow misses events; it goes on with the oldest that is still there.
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return None,
        }
        while batch.len() < 256
            && let Ok(event) = news.try_recv()
        {
            batch.push(event);
        }
        if !batch.is_empty() {
            return Some(batch);
        }
    }
}

async fn write(writer: &mut OwnedWriteHalf, reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    writer.write_all(&line).await
}

fn reply(result: Result<Answer, ApiError>) -> Reply {
    match result {
        Ok(answer) => Reply::Ok(answer),
        Err(error) => Reply::Error(error),
    }
}

fn invalid(message: String) -> ApiError {
    ApiError { code: ErrorCode::Invalid, message }
}
