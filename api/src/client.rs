// SPDX-License-Identifier: Apache-2.0
//! The synchronous client.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{API_VERSION, Answer, ApiError, ErrorCode, MAX_REQUEST, OLDEST_API_VERSION, Reply, Request};

/// A connection to the node's agent.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    stream: BufReader<UnixStream>,
    /// What was agreed on; none before the first request.
    version: Option<u32>,
}

/// Why a request was not served.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens: the agent is not running (yet).
    #[error("cannot reach the weft agent at {path}: {source}; is weft-agent running on this node?")]
    Unreachable {
        /// The socket's path.
        path: PathBuf,
        /// What `connect` said.
        source: io::Error,
    },
    /// The connection broke in the middle, or the agent did not answer in time.
    #[error("lost the weft agent at {path}: {source}")]
    Lost {
        /// The socket's path.
        path: PathBuf,
        /// What `read` or `write` said.
        source: io::Error,
    },
    /// The agent answered something that this version does not understand.
    #[error("the weft agent at {path} answered in another version of the api: {source}")]
    Protocol {
        /// The socket's path.
        path: PathBuf,
        /// What the JSON parser said.
        source: serde_json::Error,
    },
    /// The agent refused.
    #[error(transparent)]
    Refused(#[from] ApiError),
}

impl Client {
    /// Connects to the agent at `path`; every later read and write waits `timeout` at most.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`] where nobody listens.
    pub fn connect(path: impl AsRef<Path>, timeout: Option<Duration>) -> Result<Self, ClientError> {
        let path = path.as_ref().to_owned();
        let stream = UnixStream::connect(&path)
            .and_then(|stream| {
                stream.set_read_timeout(timeout)?;
                stream.set_write_timeout(timeout)?;
                Ok(stream)
            })
            .map_err(|source| ClientError::Unreachable { path: path.clone(), source })?;
        Ok(Self { path, stream: BufReader::new(stream), version: None })
    }

    /// Sends `request` and waits for its answer. Before the first one agent and client agree on a version.
    ///
    /// # Errors
    /// See [`ClientError`]; [`ErrorCode::Version`] for an agent that is too old for the request.
    pub fn call(&mut self, request: &Request) -> Result<Answer, ClientError> {
        let line = self.line(request)?;
        let version = match self.version {
            Some(version) => version,
            None => self.greet()?,
        };
        if version < request.since() {
            let message = format!(
                "the agent speaks version {version} of the api, this request is of version {}: update the agent",
                request.since()
            );
            return Err(ApiError { code: ErrorCode::Version, message }.into());
        }
        self.send(&line)
    }

    fn greet(&mut self) -> Result<u32, ClientError> {
        let hello = self.line(&Request::Hello { oldest: OLDEST_API_VERSION, newest: API_VERSION })?;
        let version = match self.send(&hello) {
            Ok(Answer::Hello { version, .. }) => version,
            // An agent of version 1 knows no greeting.
            Err(ClientError::Refused(ApiError { code: ErrorCode::Invalid, .. })) => 1,
            Ok(other) => {
                let message = format!("the agent answered a greeting by {other:?}; update it");
                return Err(ApiError { code: ErrorCode::Version, message }.into());
            }
            Err(error) => return Err(error),
        };
        self.version = Some(version);
        Ok(version)
    }

    fn line(&self, request: &Request) -> Result<Vec<u8>, ClientError> {
        let mut line =
            serde_json::to_vec(request).map_err(|source| ClientError::Protocol { path: self.path.clone(), source })?;
        line.push(b'\n');
        if line.len() > MAX_REQUEST {
            // The agent would hang up in the middle of it.
            let message =
                format!("the request has {} bytes, at most {MAX_REQUEST}; name fewer attachments in it", line.len());
            return Err(ApiError { code: ErrorCode::Invalid, message }.into());
        }
        Ok(line)
    }

    fn send(&mut self, line: &[u8]) -> Result<Answer, ClientError> {
        self.stream.get_mut().write_all(line).map_err(|source| self.lost(source))?;
        self.next_answer()
    }

    /// Waits for the next answer line; after [`Request::Flows`] with `follow` there is one per batch of events.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn next_answer(&mut self) -> Result<Answer, ClientError> {
        let mut line = String::new();
        let read = self.stream.read_line(&mut line).map_err(|source| self.lost(source))?;
        if read == 0 {
            return Err(self.lost(io::ErrorKind::UnexpectedEof.into()));
        }
        match serde_json::from_str(&line) {
            Ok(Reply::Ok(answer)) => Ok(answer),
            Ok(Reply::Error(error)) => Err(error.into()),
            Err(source) => Err(ClientError::Protocol { path: self.path.clone(), source }),
        }
    }

    fn lost(&self, source: io::Error) -> ClientError {
        ClientError::Lost { path: self.path.clone(), source }
    }
}
