//! What etcd's messages look like in JSON: the fields of each, in the order of their declaration.
//!
//! The gateway translates between JSON and protobuf by these tables alone, so it serves whatever the gRPC services
//! serve, without knowing them. Invariant: a table says the same as the `.proto` of the same name; a field that is
//! missing here is dropped, in both directions, as grpc-gateway drops what its version does not know.

/// What a field holds.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    /// `true`; `false` is left out.
    Bool,
    /// A string of digits.
    Int64,
    /// A string of digits.
    Uint64,
    /// A number.
    Uint32,
    /// Base64.
    Bytes,
    /// Text.
    Text,
    /// The name of a number; the name of the enumeration is for complaints.
    Enum(&'static str, &'static [&'static str]),
    /// An object.
    Message(&'static Message),
}

/// A field of a message.
pub(crate) struct Field {
    pub(crate) name: &'static str,
    pub(crate) tag: u32,
    pub(crate) kind: Kind,
    pub(crate) repeated: bool,
    /// One of several, of which at most one is there; it is told even if it is zero.
    pub(crate) choice: bool,
}

/// A message.
pub(crate) struct Message {
    pub(crate) fields: &'static [Field],
}

const fn one(name: &'static str, tag: u32, kind: Kind) -> Field {
    Field { name, tag, kind, repeated: false, choice: false }
}

const fn many(name: &'static str, tag: u32, kind: Kind) -> Field {
    Field { name, tag, kind, repeated: true, choice: false }
}

const fn choice(name: &'static str, tag: u32, kind: Kind) -> Field {
    Field { name, tag, kind, repeated: false, choice: true }
}

macro_rules! messages {
    ($($name:ident = [$($field:expr),* $(,)?];)*) => {
        $(pub(crate) static $name: Message = Message { fields: &[$($field),*] };)*
    };
}

use Kind::{Bool, Bytes, Enum, Int64, Message as M, Text, Uint32, Uint64};

const SORT_ORDER: Kind = Enum("etcdserverpb.RangeRequest_SortOrder", &["NONE", "ASCEND", "DESCEND"]);
const SORT_TARGET: Kind =
    Enum("etcdserverpb.RangeRequest_SortTarget", &["KEY", "VERSION", "CREATE", "MOD", "VALUE"]);
const COMPARE_RESULT: Kind =
    Enum("etcdserverpb.Compare_CompareResult", &["EQUAL", "GREATER", "LESS", "NOT_EQUAL"]);
const COMPARE_TARGET: Kind =
    Enum("etcdserverpb.Compare_CompareTarget", &["VERSION", "CREATE", "MOD", "VALUE", "LEASE"]);
const FILTER: Kind = Enum("etcdserverpb.WatchCreateRequest_FilterType", &["NOPUT", "NODELETE"]);
const EVENT: Kind = Enum("mvccpb.Event_EventType", &["PUT", "DELETE"]);
const ALARM: Kind = Enum("etcdserverpb.AlarmType", &["NONE", "NOSPACE", "CORRUPT"]);
const ALARM_ACTION: Kind = Enum("etcdserverpb.AlarmRequest_AlarmAction", &["GET", "ACTIVATE", "DEACTIVATE"]);
const DOWNGRADE: Kind =
    Enum("etcdserverpb.DowngradeRequest_DowngradeAction", &["VALIDATE", "ENABLE", "CANCEL"]);
const PERMISSION_TYPE: Kind = Enum("authpb.Permission_Type", &["READ", "WRITE", "READWRITE"]);

messages! {
    EMPTY = [];
    HEADER = [
        one("cluster_id", 1, Uint64), one("member_id", 2, Uint64), one("revision", 3, Int64),
        one("raft_term", 4, Uint64),
    ];
    HEADER_ONLY = [one("header", 1, M(&HEADER))];
    KEY_VALUE = [
        one("key", 1, Bytes), one("create_revision", 2, Int64), one("mod_revision", 3, Int64),
        one("version", 4, Int64), one("value", 5, Bytes), one("lease", 6, Int64),
    ];
    RANGE_REQUEST = [
        one("key", 1, Bytes), one("range_end", 2, Bytes), one("limit", 3, Int64), one("revision", 4, Int64),
        one("sort_order", 5, SORT_ORDER), one("sort_target", 6, SORT_TARGET), one("serializable", 7, Bool),
        one("keys_only", 8, Bool), one("count_only", 9, Bool), one("min_mod_revision", 10, Int64),
        one("max_mod_revision", 11, Int64), one("min_create_revision", 12, Int64),
        one("max_create_revision", 13, Int64),
    ];
    RANGE_RESPONSE = [
        one("header", 1, M(&HEADER)), many("kvs", 2, M(&KEY_VALUE)), one("more", 3, Bool),
        one("count", 4, Int64),
    ];
    PUT_REQUEST = [
        one("key", 1, Bytes), one("value", 2, Bytes), one("lease", 3, Int64), one("prev_kv", 4, Bool),
        one("ignore_value", 5, Bool), one("ignore_lease", 6, Bool),
    ];
    PUT_RESPONSE = [one("header", 1, M(&HEADER)), one("prev_kv", 2, M(&KEY_VALUE))];
    DELETE_REQUEST = [one("key", 1, Bytes), one("range_end", 2, Bytes), one("prev_kv", 3, Bool)];
    DELETE_RESPONSE = [
        one("header", 1, M(&HEADER)), one("deleted", 2, Int64), many("prev_kvs", 3, M(&KEY_VALUE)),
    ];
    REQUEST_OP = [
        choice("request_range", 1, M(&RANGE_REQUEST)), choice("request_put", 2, M(&PUT_REQUEST)),
        choice("request_delete_range", 3, M(&DELETE_REQUEST)), choice("request_txn", 4, M(&TXN_REQUEST)),
    ];
    RESPONSE_OP = [
        choice("response_range", 1, M(&RANGE_RESPONSE)), choice("response_put", 2, M(&PUT_RESPONSE)),
        choice("response_delete_range", 3, M(&DELETE_RESPONSE)), choice("response_txn", 4, M(&TXN_RESPONSE)),
    ];
    COMPARE = [
        one("result", 1, COMPARE_RESULT), one("target", 2, COMPARE_TARGET), one("key", 3, Bytes),
        choice("version", 4, Int64), choice("create_revision", 5, Int64), choice("mod_revision", 6, Int64),
        choice("value", 7, Bytes), choice("lease", 8, Int64), one("range_end", 64, Bytes),
    ];
    TXN_REQUEST = [
        many("compare", 1, M(&COMPARE)), many("success", 2, M(&REQUEST_OP)),
        many("failure", 3, M(&REQUEST_OP)),
    ];
    TXN_RESPONSE = [
        one("header", 1, M(&HEADER)), one("succeeded", 2, Bool), many("responses", 3, M(&RESPONSE_OP)),
    ];
    COMPACTION_REQUEST = [one("revision", 1, Int64), one("physical", 2, Bool)];
    REVISION_REQUEST = [one("revision", 1, Int64)];
    HASH_KV_RESPONSE = [
        one("header", 1, M(&HEADER)), one("hash", 2, Uint32), one("compact_revision", 3, Int64),
        one("hash_revision", 4, Int64),
    ];
    HASH_RESPONSE = [one("header", 1, M(&HEADER)), one("hash", 2, Uint32)];
    SNAPSHOT_RESPONSE = [
        one("header", 1, M(&HEADER)), one("remaining_bytes", 2, Uint64), one("blob", 3, Bytes),
    ];
    WATCH_CREATE = [
        one("key", 1, Bytes), one("range_end", 2, Bytes), one("start_revision", 3, Int64),
        one("progress_notify", 4, Bool), many("filters", 5, FILTER), one("prev_kv", 6, Bool),
        one("watch_id", 7, Int64), one("fragment", 8, Bool),
    ];
    WATCH_CANCEL = [one("watch_id", 1, Int64)];
    WATCH_REQUEST = [
        choice("create_request", 1, M(&WATCH_CREATE)), choice("cancel_request", 2, M(&WATCH_CANCEL)),
        choice("progress_request", 3, M(&EMPTY)),
    ];
    WATCH_EVENT = [one("type", 1, EVENT), one("kv", 2, M(&KEY_VALUE)), one("prev_kv", 3, M(&KEY_VALUE))];
    WATCH_RESPONSE = [
        one("header", 1, M(&HEADER)), one("watch_id", 2, Int64), one("created", 3, Bool),
        one("canceled", 4, Bool), one("compact_revision", 5, Int64), one("cancel_reason", 6, Text),
        one("fragment", 7, Bool), many("events", 11, M(&WATCH_EVENT)),
    ];
    LEASE_GRANT_REQUEST = [one("TTL", 1, Int64), one("ID", 2, Int64)];
    LEASE_GRANT_RESPONSE = [
        one("header", 1, M(&HEADER)), one("ID", 2, Int64), one("TTL", 3, Int64), one("error", 4, Text),
    ];
    LEASE_REQUEST = [one("ID", 1, Int64)];
    LEASE_KEEP_ALIVE_RESPONSE = [one("header", 1, M(&HEADER)), one("ID", 2, Int64), one("TTL", 3, Int64)];
    LEASE_TTL_REQUEST = [one("ID", 1, Int64), one("keys", 2, Bool)];
    LEASE_TTL_RESPONSE = [
        one("header", 1, M(&HEADER)), one("ID", 2, Int64), one("TTL", 3, Int64), one("grantedTTL", 4, Int64),
        many("keys", 5, Bytes),
    ];
    LEASE_LEASES_RESPONSE = [one("header", 1, M(&HEADER)), many("leases", 2, M(&LEASE_REQUEST))];
    MEMBER = [
        one("ID", 1, Uint64), one("name", 2, Text), many("peerURLs", 3, Text), many("clientURLs", 4, Text),
        one("isLearner", 5, Bool),
    ];
    MEMBERS_RESPONSE = [one("header", 1, M(&HEADER)), many("members", 2, M(&MEMBER))];
    MEMBER_ADD_REQUEST = [many("peerURLs", 1, Text), one("isLearner", 2, Bool)];
    MEMBER_ADD_RESPONSE = [
        one("header", 1, M(&HEADER)), one("member", 2, M(&MEMBER)), many("members", 3, M(&MEMBER)),
    ];
    MEMBER_REQUEST = [one("ID", 1, Uint64), many("peerURLs", 2, Text)];
    MEMBER_LIST_REQUEST = [one("linearizable", 1, Bool)];
    MOVE_LEADER_REQUEST = [one("targetID", 1, Uint64)];
    ALARM_REQUEST = [one("action", 1, ALARM_ACTION), one("memberID", 2, Uint64), one("alarm", 3, ALARM)];
    ALARM_MEMBER = [one("memberID", 1, Uint64), one("alarm", 2, ALARM)];
    ALARM_RESPONSE = [one("header", 1, M(&HEADER)), many("alarms", 2, M(&ALARM_MEMBER))];
    DOWNGRADE_REQUEST = [one("action", 1, DOWNGRADE), one("version", 2, Text)];
    DOWNGRADE_RESPONSE = [one("header", 1, M(&HEADER)), one("version", 2, Text)];
    STATUS_RESPONSE = [
        one("header", 1, M(&HEADER)), one("version", 2, Text), one("dbSize", 3, Int64),
        one("leader", 4, Uint64), one("raftIndex", 5, Uint64), one("raftTerm", 6, Uint64),
        one("raftAppliedIndex", 7, Uint64), many("errors", 8, Text), one("dbSizeInUse", 9, Int64),
        one("isLearner", 10, Bool), one("storageVersion", 11, Text), one("dbSizeQuota", 12, Int64),
    ];
    AUTH_STATUS_RESPONSE =
        [one("header", 1, M(&HEADER)), one("enabled", 2, Bool), one("authRevision", 3, Uint64)];
    NAME_PASSWORD = [one("name", 1, Text), one("password", 2, Text)];
    AUTHENTICATE_RESPONSE = [one("header", 1, M(&HEADER)), one("token", 2, Text)];
    USER_OPTIONS = [one("no_password", 1, Bool)];
    USER_ADD_REQUEST = [
        one("name", 1, Text), one("password", 2, Text), one("options", 3, M(&USER_OPTIONS)),
        one("hashedPassword", 4, Text),
    ];
    USER_CHANGE_REQUEST = [one("name", 1, Text), one("password", 2, Text), one("hashedPassword", 3, Text)];
    NAME_REQUEST = [one("name", 1, Text)];
    USER_ROLE_REQUEST = [one("user", 1, Text), one("role", 2, Text)];
    NAME_ROLE_REQUEST = [one("name", 1, Text), one("role", 2, Text)];
    ROLE_REQUEST = [one("role", 1, Text)];
    ROLES_RESPONSE = [one("header", 1, M(&HEADER)), many("roles", 2, Text)];
    USERS_RESPONSE = [one("header", 1, M(&HEADER)), many("users", 2, Text)];
    PERMISSION = [one("permType", 1, PERMISSION_TYPE), one("key", 2, Bytes), one("range_end", 3, Bytes)];
    ROLE_GET_RESPONSE = [one("header", 1, M(&HEADER)), many("perm", 2, M(&PERMISSION))];
    ROLE_GRANT_REQUEST = [one("name", 1, Text), one("perm", 2, M(&PERMISSION))];
    ROLE_REVOKE_REQUEST = [one("role", 1, Text), one("key", 2, Bytes), one("range_end", 3, Bytes)];
    LOCK_REQUEST = [one("name", 1, Bytes), one("lease", 2, Int64)];
    LOCK_RESPONSE = [one("header", 1, M(&HEADER)), one("key", 2, Bytes)];
    UNLOCK_REQUEST = [one("key", 1, Bytes)];
    LEADER_KEY = [one("name", 1, Bytes), one("key", 2, Bytes), one("rev", 3, Int64), one("lease", 4, Int64)];
    CAMPAIGN_REQUEST = [one("name", 1, Bytes), one("lease", 2, Int64), one("value", 3, Bytes)];
    CAMPAIGN_RESPONSE = [one("header", 1, M(&HEADER)), one("leader", 2, M(&LEADER_KEY))];
    PROCLAIM_REQUEST = [one("leader", 1, M(&LEADER_KEY)), one("value", 2, Bytes)];
    LEADER_REQUEST = [one("name", 1, Bytes)];
    LEADER_RESPONSE = [one("header", 1, M(&HEADER)), one("kv", 2, M(&KEY_VALUE))];
    RESIGN_REQUEST = [one("leader", 1, M(&LEADER_KEY))];
}
