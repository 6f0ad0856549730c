// SPDX-License-Identifier: Apache-2.0
//! The error object of the CNI protocol.

use serde_json::{Value, json};
use weft_api::{ClientError, ErrorCode};

use crate::{
    netlink::NetlinkError,
    version::{SpecVersion, UnsupportedVersion},
};

/// Error codes: CNI spec 1.1.0, "Error"; 100 and above are the plugin's own.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Code {
    /// The configuration asks for a spec version (or a verb of a later one) that is not supported.
    IncompatibleVersion,
    /// A field that is supported by the spec and not by this plugin.
    UnsupportedField,
    /// The attachment is not known: the runtime need not clean up.
    UnknownContainer,
    /// A `CNI_*` variable is missing or wrong.
    Environment,
    /// A system call failed.
    Io,
    /// The configuration is not JSON, or not of the shape that the spec gives it.
    Decode,
    /// The configuration has an unknown, wrong or contradictory field.
    Config,
    /// A transient condition: the runtime should call again.
    TryAgainLater,
    /// ADD cannot be served now.
    Unavailable,
    /// What CHECK found is not what ADD made.
    Mismatch,
    /// The agent speaks another version of the local API.
    Protocol,
}

impl From<Code> for u32 {
    fn from(code: Code) -> Self {
        match code {
            Code::IncompatibleVersion => 1,
            Code::UnsupportedField => 2,
            Code::UnknownContainer => 3,
            Code::Environment => 4,
            Code::Io => 5,
            Code::Decode => 6,
            Code::Config => 7,
            Code::TryAgainLater => 11,
            Code::Unavailable => 50,
            Code::Mismatch => 100,
            Code::Protocol => 101,
        }
    }
}

/// Why a call failed, for the runtime and for people.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{msg}")]
pub struct CniError {
    /// The class.
    pub code: Code,
    /// One sentence that names the object, the field and the fix.
    pub msg: String,
    /// What else happened, such as steps of the undo that failed; may be empty.
    pub details: String,
}

impl CniError {
    /// An error without details.
    pub fn new(code: Code, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: String::new() }
    }

    /// A wrong configuration field.
    pub(crate) fn config(msg: impl Into<String>) -> Self {
        Self::new(Code::Config, msg)
    }

    /// A wrong `CNI_*` variable.
    pub(crate) fn environment(msg: impl Into<String>) -> Self {
        Self::new(Code::Environment, msg)
    }

    /// A system call that failed on `object`.
    pub(crate) fn io(object: impl std::fmt::Display, source: impl std::fmt::Display) -> Self {
        Self::new(Code::Io, format!("{object}: {source}"))
    }

    /// One error for `problems`, with the code of the first; none where there are no problems.
    pub(crate) fn joined(problems: Vec<Self>) -> Option<Self> {
        let code = problems.first()?.code;
        let texts: Vec<_> = problems.into_iter().map(|problem| problem.msg).collect();
        Some(Self::new(code, texts.join("; ")))
    }

    /// The error object in `version`'s format.
    pub fn to_json(&self, version: SpecVersion) -> Value {
        let mut object = json!({ "cniVersion": version.as_str(), "code": u32::from(self.code), "msg": self.msg });
        if !self.details.is_empty() {
            object["details"] = self.details.clone().into();
        }
        object
    }

    /// What the agent's refusal of a request means to the runtime; `addressed` when the request named static addresses,
    /// which decides what [`ErrorCode::Exists`] speaks of.
    pub(crate) fn from_agent(error: &ClientError, addressed: bool) -> Self {
        let code = match error {
            ClientError::Unreachable { .. } | ClientError::Lost { .. } => Code::TryAgainLater,
            ClientError::Protocol { .. } => Code::Protocol,
            ClientError::Refused(refusal) => match refusal.code {
                ErrorCode::Invalid => Code::Config,
                ErrorCode::Unknown => Code::UnknownContainer,
                ErrorCode::Exists if addressed => Code::Config,
                ErrorCode::Exists => Code::Environment,
                ErrorCode::Exhausted => Code::TryAgainLater,
                ErrorCode::NotReady => Code::Unavailable,
                ErrorCode::Io => Code::Io,
                ErrorCode::Mismatch => Code::Mismatch,
                ErrorCode::Version => Code::Protocol,
            },
        };
        Self::new(code, error.to_string())
    }
}

impl From<NetlinkError> for CniError {
    fn from(error: NetlinkError) -> Self {
        Self::new(Code::Io, error.to_string())
    }
}

impl From<UnsupportedVersion> for CniError {
    fn from(error: UnsupportedVersion) -> Self {
        Self::new(Code::IncompatibleVersion, error.to_string())
    }
}
