//! What the v2 API answers when it refuses: etcd's numbers, words and HTTP statuses.
//!
//! Invariant: a refusal names the index at which it was decided, or 0 if the store was not asked.

use crate::http::transcode::quote;
use axum::http::StatusCode;
use tonic::Status;

/// Situations, with etcd's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    KeyNotFound = 100,
    TestFailed = 101,
    NotFile = 102,
    NotDir = 104,
    NodeExist = 105,
    RootReadOnly = 107,
    DirNotEmpty = 108,
    Unauthorized = 110,
    PrevValueRequired = 201,
    TtlNotANumber = 202,
    IndexNotANumber = 203,
    InvalidField = 209,
    InvalidForm = 210,
    RefreshValue = 211,
    RefreshTtlRequired = 212,
    Internal = 300,
    EventIndexCleared = 401,
}

impl Code {
    fn message(self) -> &'static str {
        match self {
            Self::KeyNotFound => "Key not found",
            Self::TestFailed => "Compare failed",
            Self::NotFile => "Not a file",
            Self::NotDir => "Not a directory",
            Self::NodeExist => "Key already exists",
            Self::RootReadOnly => "Root is read only",
            Self::DirNotEmpty => "Directory not empty",
            Self::Unauthorized => "The request requires user authentication",
            Self::PrevValueRequired => "PrevValue is Required in POST form",
            Self::TtlNotANumber => "The given TTL in POST form is not a number",
            Self::IndexNotANumber => "The given index in POST form is not a number",
            Self::InvalidField => "Invalid field",
            Self::InvalidForm => "Invalid POST form",
            Self::RefreshValue => "Value provided on refresh",
            Self::RefreshTtlRequired => "A TTL must be provided on refresh",
            Self::Internal => "Raft Internal Error",
            Self::EventIndexCleared => "The event in requested index is outdated and cleared",
        }
    }
}

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) code: Code,
    pub(crate) cause: String,
    pub(crate) index: i64,
}

impl Refusal {
    pub(crate) fn new(code: Code, cause: impl Into<String>, index: i64) -> Self {
        Self { code, cause: cause.into(), index }
    }

    /// Of a request that cannot be understood.
    pub(crate) fn request(code: Code, cause: impl Into<String>) -> Self {
        Self::new(code, cause, 0)
    }

    pub(crate) fn status(&self) -> StatusCode {
        match self.code {
            Code::KeyNotFound => StatusCode::NOT_FOUND,
            Code::NotFile | Code::DirNotEmpty => StatusCode::FORBIDDEN,
            Code::Unauthorized => StatusCode::UNAUTHORIZED,
            Code::TestFailed | Code::NodeExist => StatusCode::PRECONDITION_FAILED,
            Code::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::BAD_REQUEST,
        }
    }

    pub(crate) fn json(&self) -> String {
        let mut out = format!("{{\"errorCode\":{},\"message\":\"{}\"", self.code as u16, self.code.message());
        if !self.cause.is_empty() {
            out.push_str(",\"cause\":");
            quote(&self.cause, &mut out);
        }
        out.push_str(&format!(",\"index\":{}}}\n", self.index));
        out
    }
}

/// What the services refuse that v2 has no name for.
impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        use tonic::Code as C;
        let code = match status.code() {
            C::Unauthenticated | C::PermissionDenied => Code::Unauthorized,
            C::InvalidArgument if status.message().contains("authentication failed") => Code::Unauthorized,
            C::InvalidArgument if status.message().contains("user name is empty") => Code::Unauthorized,
            _ => Code::Internal,
        };
        let cause = match code {
            Code::Unauthorized => "Insufficient credentials",
            _ => status.message(),
        };
        Self::new(code, cause, 0)
    }
}
