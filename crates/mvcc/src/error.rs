//! What a store refuses, and how.
//!
//! The texts are part of the API: Go clients map errors back by exact text (etcd's `api/v3rpc/rpctypes/error.go`),
//! kine, Patroni and confd match on it. So a text here never changes, and the gRPC code is data beside it.

use crate::noun::{Revision, RowId};

/// A gRPC status code, by name; the adapter turns it into its own type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    /// 2: etcd has no code for it.
    Unknown,
    /// 3: the request is wrong whatever the state.
    InvalidArgument,
    /// 5: what the request names does not exist.
    NotFound,
    /// 7: the caller may not.
    PermissionDenied,
    /// 8: a quota is used up.
    ResourceExhausted,
    /// 9: the state does not allow it.
    FailedPrecondition,
    /// 11: past the end of what is kept.
    OutOfRange,
    /// 14: come again later.
    Unavailable,
    /// 15: data is lost or wrong.
    DataLoss,
    /// 16: nobody knows who the caller is.
    Unauthenticated,
}

/// Why a command was refused. The text is etcd's, to the letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Error {
    /// A range, put, delete or compare without a key.
    #[error("etcdserver: key is not provided")]
    EmptyKey,
    /// `ignore_value` or `ignore_lease` on a key that does not exist; also a transaction's empty operation.
    #[error("etcdserver: key not found")]
    KeyNotFound,
    /// `ignore_value` together with a value.
    #[error("etcdserver: value is provided")]
    ValueProvided,
    /// `ignore_lease` together with a lease.
    #[error("etcdserver: lease is provided")]
    LeaseProvided,
    /// More than [`MAX_TXN_OPS`](crate::MAX_TXN_OPS) compares or operations, nesting included.
    #[error("etcdserver: too many operations in txn request")]
    TooManyOps,
    /// A transaction puts a key twice, or puts a key that it also deletes.
    #[error("etcdserver: duplicate key given in txn request")]
    DuplicateKey,
    /// A sort order or target outside the enumeration.
    #[error("etcdserver: invalid sort option")]
    InvalidSortOption,
    /// A request above the size limit (1.5 MiB in etcd and in the embedded hub).
    #[error("etcdserver: request is too large")]
    RequestTooLarge,
    /// A revision below the compacted one.
    #[error("etcdserver: mvcc: required revision has been compacted")]
    Compacted,
    /// A revision above the current one.
    #[error("etcdserver: mvcc: required revision is a future revision")]
    FutureRevision,
    /// The store is above its quota.
    #[error("etcdserver: mvcc: database space exceeded")]
    NoSpace,
    /// There is an alarm that members have different data.
    #[error("etcdserver: corrupt cluster")]
    Corrupt,
    /// No lease of that id, or it has expired.
    #[error("etcdserver: requested lease not found")]
    LeaseNotFound,
    /// A grant with the id of a lease that exists.
    #[error("etcdserver: lease already exists")]
    LeaseExists,
    /// A time to live above [`MAX_LEASE_TTL`](crate::MAX_LEASE_TTL).
    #[error("etcdserver: too large lease TTL")]
    LeaseTtlTooLarge,
    /// The server is shutting down.
    #[error("etcdserver: server stopped")]
    Stopped,
    /// To enable authentication takes a user `root`.
    #[error("etcdserver: root user does not exist")]
    RootUserMissing,
    /// To enable authentication takes a user `root` with the role `root`.
    #[error("etcdserver: root user does not have root role")]
    RootRoleMissing,
    /// There is a user of that name.
    #[error("etcdserver: user name already exists")]
    UserExists,
    /// A user without a name, or a caller that did not say who it is.
    #[error("etcdserver: user name is empty")]
    UserEmpty,
    /// No user of that name.
    #[error("etcdserver: user name not found")]
    UserNotFound,
    /// There is a role of that name.
    #[error("etcdserver: role name already exists")]
    RoleExists,
    /// No role of that name.
    #[error("etcdserver: role name not found")]
    RoleNotFound,
    /// A role without a name.
    #[error("etcdserver: role name is empty")]
    RoleEmpty,
    /// No such user, or not its password.
    #[error("etcdserver: authentication failed, invalid user ID or password")]
    AuthFailed,
    /// A login by password of a user that has none.
    #[error("auth: authentication failed, password was given for no password user")]
    NoPasswordUser,
    /// A grant without a permission.
    #[error("etcdserver: permission not given")]
    PermissionNotGiven,
    /// The caller may not do that.
    #[error("etcdserver: permission denied")]
    PermissionDenied,
    /// The user does not have the role.
    #[error("etcdserver: role is not granted to the user")]
    RoleNotGranted,
    /// The role does not have the permission.
    #[error("etcdserver: permission is not granted to the role")]
    PermissionNotGranted,
    /// A login where there are none.
    #[error("etcdserver: authentication is not enabled")]
    AuthNotEnabled,
    /// A token that was never given out, or is over.
    #[error("etcdserver: invalid auth token")]
    InvalidAuthToken,
    /// What would leave nobody who may do everything.
    #[error("etcdserver: invalid auth management")]
    InvalidAuthManagement,
    /// Users or roles changed while a login was being checked.
    #[error("etcdserver: revision of auth store is old")]
    AuthOldRevision,
}

impl Error {
    /// The gRPC code that etcd sends with this text.
    pub fn code(self) -> Code {
        match self {
            Self::EmptyKey
            | Self::KeyNotFound
            | Self::ValueProvided
            | Self::LeaseProvided
            | Self::TooManyOps
            | Self::DuplicateKey
            | Self::InvalidSortOption
            | Self::RequestTooLarge
            | Self::UserEmpty
            | Self::RoleEmpty
            | Self::AuthFailed
            | Self::PermissionNotGiven
            | Self::InvalidAuthManagement
            | Self::AuthOldRevision => Code::InvalidArgument,
            Self::Compacted | Self::FutureRevision | Self::LeaseTtlTooLarge => Code::OutOfRange,
            Self::NoSpace => Code::ResourceExhausted,
            Self::Corrupt => Code::DataLoss,
            Self::LeaseNotFound => Code::NotFound,
            Self::LeaseExists
            | Self::RootUserMissing
            | Self::RootRoleMissing
            | Self::UserExists
            | Self::UserNotFound
            | Self::RoleExists
            | Self::RoleNotFound
            | Self::RoleNotGranted
            | Self::PermissionNotGranted
            | Self::AuthNotEnabled => Code::FailedPrecondition,
            Self::NoPasswordUser => Code::Unknown,
            Self::PermissionDenied => Code::PermissionDenied,
            Self::InvalidAuthToken => Code::Unauthenticated,
            Self::Stopped => Code::Unavailable,
        }
    }
}

/// Why records do not make a store. Each means that the storage lost or invented something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// Rows must come in ascending order.
    #[error("the record of revision {next} follows that of revision {last}")]
    OutOfOrder {
        /// The row before.
        last: RowId,
        /// The row that should have come earlier.
        next: RowId,
    },
    /// No store has come so far: the record is somebody's invention, and there would be no room after it.
    #[error("{number} is more than a revision or a version can be")]
    TooLarge {
        /// The number.
        number: i64,
    },
    /// Users and roles are not in any encoding that this version knows.
    #[error("the record of users and roles cannot be read")]
    Auth,
    /// Above the compacted revision every revision has at least one row.
    #[error("no record of revision {missing}; the next one is {next}")]
    Missing {
        /// The revision that is not there.
        missing: Revision,
        /// The row found instead.
        next: RowId,
    },
}
