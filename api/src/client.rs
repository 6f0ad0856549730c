// SPDX-License-Identifier: Apache-2.0
//! The synchronous client.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    API_VERSION, Answer, ApiError, Entries, ErrorCode, List, MAX_REQUEST, OLDEST_API_VERSION, Page, PageQuery, Reply,
    Request, ServiceReport, StatusReport,
};

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
        let version = self.agreed()?;
        if version < request.since() {
            let message = format!(
                "the agent speaks version {version} of the api, this request is of version {}: update the agent",
                request.since()
            );
            return Err(ApiError { code: ErrorCode::Version, message }.into());
        }
        self.send(&line)
    }

    /// The version that both speak; asks for it once.
    fn agreed(&mut self) -> Result<u32, ClientError> {
        self.version.map_or_else(|| self.greet(), Ok)
    }

    /// All of a list, page by page; an agent that knows no pages gives all of it at once. `name` is [`PageQuery::name`]: such an
    /// agent gives other entries too.
    pub fn pages(&mut self, list: List, name: Option<&str>) -> Pages<'_> {
        let query = PageQuery { list, limit: None, after: None, name: name.map(str::to_owned) };
        Pages { client: self, query: Some(query), begun: None }
    }

    /// [`Request::Status`], by pages where the agent knows them.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn status(&mut self) -> Result<StatusReport, ClientError> {
        let by_pages = self.agreed()? >= Request::Summary.since();
        let mut status = match self.call(if by_pages { &Request::Summary } else { &Request::Status })? {
            Answer::Status(status) => *status,
            other => return Err(unexpected(&other)),
        };
        for list in [List::Routes, List::Problems].into_iter().filter(|_| by_pages) {
            for page in self.pages(list, None) {
                match page? {
                    Entries::Routes(routes) => status.routes.extend(routes),
                    Entries::Problems(problems) => status.problems.extend(problems),
                    _ => {}
                }
            }
        }
        Ok(status)
    }

    fn greet(&mut self) -> Result<u32, ClientError> {
        let hello = self.line(&Request::Hello { oldest: OLDEST_API_VERSION, newest: API_VERSION })?;
        let version = match self.send(&hello) {
            Ok(Answer::Hello { version, .. }) => version,
            // An agent of version 1 knows no greeting.
            Err(ClientError::Refused(ApiError { code: ErrorCode::Invalid, .. })) => 1,
            Ok(other) => return Err(unexpected(&other)),
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

fn unexpected(answer: &Answer) -> ClientError {
    let message = format!(
        "the agent answered {answer:?}; use the client of the agent's version (this one speaks api version {API_VERSION})"
    );
    ApiError { code: ErrorCode::Version, message }.into()
}

/// The pages of a list; see [`Client::pages`]. Ends after an error.
#[derive(Debug)]
pub struct Pages<'a> {
    client: &'a mut Client,
    /// What to ask next; none: that was all.
    query: Option<PageQuery>,
    /// A Service of which the next page tells more.
    begun: Option<ServiceReport>,
}

impl Iterator for Pages<'_> {
    type Item = Result<Entries, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        let query = self.query.take()?;
        Some(self.page(query))
    }
}

impl Pages<'_> {
    fn page(&mut self, query: PageQuery) -> Result<Entries, ClientError> {
        if self.client.agreed()? < Request::List(query.clone()).since() {
            let answer = self.client.call(&query.list.whole())?;
            return whole(query.list, answer);
        }
        let page = match self.client.call(&Request::List(query.clone()))? {
            Answer::Page(page) => page,
            other => return Err(unexpected(&other)),
        };
        let Page { mut entries, next, partial } = page;
        if let Entries::Services(services) = &mut entries {
            self.put_together(services, partial && next.is_some());
        }
        self.query = next.map(|next| PageQuery { after: Some(next), ..query });
        Ok(entries)
    }

    /// A Service that comes in parts is told when it is whole.
    fn put_together(&mut self, services: &mut Vec<ServiceReport>, partial: bool) {
        if let Some(mut begun) = self.begun.take() {
            let first = if services.is_empty() { None } else { Some(services.remove(0)) };
            let other = first.and_then(|first| begun.extend(first).err());
            services.splice(0..0, std::iter::once(begun).chain(other.map(|other| *other)));
        }
        if partial {
            self.begun = services.pop();
        }
    }
}

/// The answer of an agent that knows no pages.
fn whole(list: List, answer: Answer) -> Result<Entries, ClientError> {
    match (list, answer) {
        (_, Answer::Endpoints(endpoints)) => Ok(Entries::Endpoints(endpoints)),
        (_, Answer::Services(services)) => Ok(Entries::Services(services)),
        (_, Answer::Policies(policies)) => Ok(Entries::Policies(policies)),
        (_, Answer::Vms(vms)) => Ok(Entries::Vms(vms)),
        (List::Routes, Answer::Status(status)) => Ok(Entries::Routes(status.routes)),
        (_, Answer::Status(status)) => Ok(Entries::Problems(status.problems)),
        (_, other) => Err(unexpected(&other)),
    }
}
