// SPDX-License-Identifier: Apache-2.0
//! The Weft agent's local API.
//!
//! The CNI plugin and the CLI talk to the node's agent over a unix stream socket, by default [`DEFAULT_SOCKET`]. One JSON
//! object a line: a [`Request`] in, one [`Reply`] line out; after [`Request::Flows`] with `follow` the agent goes on
//! writing one [`Reply`] line per event until the client hangs up. A connection carries any number of requests, one after
//! the other; a connection that does not begin with [`Request::Hello`] speaks version 1.
//!
//! [`Client`] is the synchronous client that both use. Nothing in this crate knows how the agent works. Plugin and agent also
//! share folders on disk: [`mod@file`] is how either writes there.

#![forbid(unsafe_code)]

mod attachment;
mod client;
mod explain;
pub mod file;
mod mac;
mod page;
mod report;

pub use attachment::{
    Allocation, AssignedAddress, AttachmentId, AttachmentSpec, DnsSettings, HostPort, HostPortProtocol, PodRef,
    PortKind, PortLink, Route,
};
pub use client::{Client, ClientError, Pages};
pub use explain::{ExplainQuery, ExplainStep, Explanation};
pub use mac::{Mac, ParseMacError};
pub use page::{Entries, List, MAX_PAGE_BYTES, MAX_PAGE_ENTRIES, Page, PageQuery};
pub use report::{
    BackendReport, DropReport, EndpointReport, FlowEvent, FlowVerdict, MapReport, PolicyReport, RouteReport,
    ServicePortReport, ServiceReport, SourceState, StatusReport, USUAL_WEIGHT, VmReport,
};

use serde::{Deserialize, Serialize};

/// Version of this contract. Agent and client agree on one at the start of each connection ([`Request::Hello`]).
///
/// | Version | What is new |
/// |---|---|
/// | 1 | all requests but those below; connections begin without a greeting |
/// | 2 | [`Request::Hello`], [`Request::Explain`] |
/// | 3 | [`Request::List`], [`Request::Summary`]: what grows with the cluster comes by pages |
pub const API_VERSION: u32 = 3;

/// The oldest version that is still spoken: a plugin of the version before outlives its agent by an upgrade.
pub const OLDEST_API_VERSION: u32 = 1;

/// Where the agent listens unless its config says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/weft/agent.sock";

/// Bytes that a request may have, its line's end included. Only GC's grows with what it names: 200 bytes for an attachment, so that
/// this is 160,000 of them, more than a cluster of Kubernetes' own limits has on all nodes together.
pub const MAX_REQUEST: usize = 32 << 20;

/// One question to the agent.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Request {
    /// First on a connection: which versions of this contract the client speaks. Answered by [`Answer::Hello`], or by an
    /// [`ApiError`] with [`ErrorCode::Version`].
    Hello {
        /// The oldest.
        oldest: u32,
        /// The newest.
        newest: u32,
    },
    /// Is the agent able to serve ADD? Answered by [`Answer::Done`] or an [`ApiError`] with [`ErrorCode::NotReady`].
    Ready,
    /// The agent's state, for `weft status`.
    Status,
    /// CNI ADD, first half: reserve addresses and names. Idempotent for one [`AttachmentId`] until [`Request::Attach`].
    Allocate(AttachmentSpec),
    /// CNI ADD, second half: the link exists; attach programs, program maps and policy. Answered when traffic may flow.
    Attach {
        /// Which attachment.
        id: AttachmentId,
        /// The link that the plugin made.
        link: PortLink,
    },
    /// CNI DEL, or undo of a half-done ADD: forget the attachment, free its addresses. Succeeds when it is unknown.
    Release {
        /// Which attachment.
        id: AttachmentId,
    },
    /// CNI CHECK: the attachment is known, its programs are attached and its map entries are there.
    Check {
        /// Which attachment.
        id: AttachmentId,
        /// The addresses that the previous result told.
        addresses: Vec<ipnet::IpNet>,
    },
    /// CNI GC: release every attachment of `network` that is not in `valid`.
    Gc {
        /// The CNI network's name.
        network: String,
        /// What the runtime still knows.
        valid: Vec<AttachmentId>,
    },
    /// Ports of this node.
    Endpoints,
    /// Services as programmed.
    Services,
    /// Policies as compiled.
    Policies,
    /// Flow events.
    Flows {
        /// How many of the latest events to return first.
        last: usize,
        /// Go on with new events until the client hangs up.
        follow: bool,
    },
    /// Drop counters by reason.
    Drops,
    /// vhost-user ports of this node, and what their devices tell of themselves.
    Vms,
    /// What would happen to a packet.
    Explain(ExplainQuery),
    /// One page of a list.
    List(PageQuery),
    /// As [`Request::Status`], without routes and problems: these are lists.
    Summary,
}

/// One line of answer.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// The request was served.
    Ok(Answer),
    /// It was not.
    Error(ApiError),
}

/// The payload of a served request.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(tag = "kind", content = "value", rename_all = "kebab-case")]
pub enum Answer {
    /// To [`Request::Hello`].
    Hello {
        /// The newest version that both speak.
        version: u32,
        /// The agent's release.
        agent: String,
    },
    /// Nothing to tell.
    Done,
    /// To [`Request::Allocate`].
    Allocation(Allocation),
    /// To [`Request::Gc`]: what was released.
    Released(Vec<AttachmentId>),
    /// To [`Request::Status`] and [`Request::Summary`].
    Status(Box<StatusReport>),
    /// To [`Request::Explain`].
    Explanation(Box<Explanation>),
    /// To [`Request::Endpoints`].
    Endpoints(Vec<EndpointReport>),
    /// To [`Request::Services`].
    Services(Vec<ServiceReport>),
    /// To [`Request::Policies`].
    Policies(Vec<PolicyReport>),
    /// To [`Request::Flows`]: a batch of events, oldest first.
    Flows(Vec<FlowEvent>),
    /// To [`Request::Drops`].
    Drops(Vec<DropReport>),
    /// To [`Request::Vms`].
    Vms(Vec<VmReport>),
    /// To [`Request::List`].
    Page(Page),
}

/// A refusal: what is wrong, with which object and field, and what to do.
#[derive(Clone, Debug, Deserialize, Serialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// The class, from which the CNI plugin takes its error code.
    pub code: ErrorCode,
    /// One sentence for people; lower case, names the object, the field and the fix.
    pub message: String,
}

/// Classes of refusals.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// The request is malformed or contradicts itself (CNI code 7).
    Invalid,
    /// The attachment is not known (CNI code 3).
    Unknown,
    /// Something of that name or address is there already (CNI code 4 for names, 7 for addresses).
    Exists,
    /// No address is left in the pool (CNI code 11).
    Exhausted,
    /// Not now: the agent has not synced yet (CNI code 50).
    NotReady,
    /// A system call or the kernel refused (CNI code 5).
    Io,
    /// What CHECK found does not agree with what ADD made (CNI code 100).
    Mismatch,
    /// Agent and client have no version of this contract in common (CNI code 101).
    Version,
}

impl Request {
    /// The version of this contract that has it first.
    #[must_use]
    pub const fn since(&self) -> u32 {
        match self {
            Self::Hello { .. } | Self::Explain(_) => 2,
            Self::List(_) | Self::Summary => 3,
            _ => 1,
        }
    }
}

/// The newest version that agent and client both speak.
///
/// # Errors
/// There is none: the message says who has to be updated.
pub fn agree(oldest: u32, newest: u32, agent: &str) -> Result<u32, ApiError> {
    let version = newest.min(API_VERSION);
    if version >= oldest.max(OLDEST_API_VERSION) {
        return Ok(version);
    }
    let older = if newest < OLDEST_API_VERSION { "the client" } else { "the agent" };
    let message = format!(
        "the client speaks versions {oldest} to {newest} of the api, the agent {agent} {OLDEST_API_VERSION} to {API_VERSION}: update {older}"
    );
    Err(ApiError { code: ErrorCode::Version, message })
}
