//! Users, roles and permissions: the same random administration and access on the hub and on a real etcd, and what a
//! random walk does not reach.

use crate::dice::Dice;
use crate::differential::{Etcd, same};
use crate::raw::{call_as, channel, only_revision};
use crate::{Fixture, effort};
use bytes::Bytes;
use etcd_client::proto as pb;
use std::collections::HashMap;
use tonic::Status;
use tonic::transport::Channel;

#[derive(Clone, PartialEq, prost::Message)]
struct Empty {}

/// An answer that is only a header.
#[derive(Clone, PartialEq, prost::Message)]
struct Done {
    #[prost(message, optional, tag = "1")]
    header: Option<pb::PbResponseHeader>,
}

/// Names of users or roles.
#[derive(Clone, PartialEq, prost::Message)]
struct Names {
    #[prost(message, optional, tag = "1")]
    header: Option<pb::PbResponseHeader>,
    #[prost(string, repeated, tag = "2")]
    names: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Named {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    other: String,
    #[prost(message, optional, tag = "3")]
    options: Option<UserOptions>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct UserOptions {
    #[prost(bool, tag = "1")]
    no_password: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct WirePermission {
    #[prost(int32, tag = "1")]
    kind: i32,
    #[prost(bytes = "bytes", tag = "2")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    range_end: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Grant {
    #[prost(string, tag = "1")]
    role: String,
    #[prost(message, optional, tag = "2")]
    permission: Option<WirePermission>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Permissions {
    #[prost(message, optional, tag = "1")]
    header: Option<pb::PbResponseHeader>,
    #[prost(message, repeated, tag = "2")]
    permissions: Vec<WirePermission>,
}

/// The hub and the etcd, and who is logged in: a token of each.
struct Both {
    hub: Channel,
    etcd: Channel,
    tokens: HashMap<String, (String, String)>,
    /// Of the last answers, so that a seed that tests nothing is seen.
    allowed: usize,
    denied: usize,
}

macro_rules! ask {
    ($both:expr, $who:expr, $path:literal, $request:expr, $answer:ty) => {{
        let request = $request;
        let (hub, etcd) = $both.tokens_of($who);
        let mut hub: Result<$answer, Status> =
            call_as(hub.as_deref(), &$both.hub, $path, request.clone()).await;
        let mut etcd: Result<$answer, Status> =
            call_as(etcd.as_deref(), &$both.etcd, $path, request.clone()).await;
        for response in [&mut hub, &mut etcd].into_iter().flatten() {
            only_revision(&mut response.header);
        }
        let answer = same(&($who, $path, &request), hub, etcd);
        *if answer.is_some() { &mut $both.allowed } else { &mut $both.denied } += 1;
        answer
    }};
}

const USERS: [&str; 5] = ["root", "ann", "bob", "cert", ""];
const ROLES: [&str; 5] = ["root", "r1", "r2", "r3", ""];
const PASSWORDS: [&str; 2] = ["one", "two"];

impl Both {
    fn tokens_of(&self, who: &str) -> (Option<String>, Option<String>) {
        match who {
            "nobody" => (None, None),
            "forger" => (Some("forged.1".to_owned()), Some("forged.1".to_owned())),
            who => self.tokens.get(who).cloned().map_or((None, None), |(hub, etcd)| (Some(hub), Some(etcd))),
        }
    }

    async fn login(&mut self, name: &str, password: &str) {
        let request = pb::PbAuthenticateRequest { name: name.to_owned(), password: password.to_owned() };
        let path = "/etcdserverpb.Auth/Authenticate";
        let hub: Result<pb::PbAuthenticateResponse, Status> =
            call_as(None, &self.hub, path, request.clone()).await;
        let etcd: Result<pb::PbAuthenticateResponse, Status> =
            call_as(None, &self.etcd, path, request.clone()).await;
        if let (Ok(hub), Ok(etcd)) = (&hub, &etcd) {
            assert_eq!(
                hub.token.split('.').next().unwrap().len(),
                etcd.token.split('.').next().unwrap().len()
            );
            self.tokens.insert(name.to_owned(), (hub.token.clone(), etcd.token.clone()));
        }
        let blank = |answer: pb::PbAuthenticateResponse| answer.header.unwrap().revision;
        same(&(name, password), hub.map(blank), etcd.map(blank));
    }

    async fn start(&mut self) {
        let named = |name: &str, other: &str| Named { name: name.into(), other: other.into(), options: None };
        ask!(self, "nobody", "/etcdserverpb.Auth/UserAdd", named("root", "one"), Done);
        ask!(self, "nobody", "/etcdserverpb.Auth/AuthEnable", Empty {}, Done);
        ask!(self, "nobody", "/etcdserverpb.Auth/UserGrantRole", named("root", "root"), Done);
        ask!(self, "nobody", "/etcdserverpb.Auth/AuthEnable", Empty {}, Done);
        self.login("root", "one").await;
        for user in ["ann", "bob"] {
            ask!(self, "root", "/etcdserverpb.Auth/UserAdd", named(user, "one"), Done);
            self.login(user, "one").await;
        }
        for role in ["r1", "r2"] {
            ask!(self, "root", "/etcdserverpb.Auth/RoleAdd", named(role, ""), Done);
        }
        ask!(self, "root", "/etcdserverpb.Auth/UserGrantRole", named("ann", "r1"), Done);
        ask!(self, "root", "/etcdserverpb.Auth/UserGrantRole", named("bob", "r2"), Done);
    }

    async fn administer(&mut self, dice: &mut Dice) {
        // Mostly root, so that something comes of it.
        let who = dice.pick(&["root", "root", "root", "root", "root", "ann", "nobody", "forger"]);
        let (user, role) = (dice.pick(&USERS).to_owned(), dice.pick(&ROLES).to_owned());
        let named = |name: &str, other: &str| Named { name: name.into(), other: other.into(), options: None };
        match dice.roll(16) {
            0 => {
                let options = (user == "cert").then_some(UserOptions { no_password: true });
                let other = if options.is_some() { "" } else { dice.pick(&PASSWORDS) };
                let add = Named { options, ..named(&user, other) };
                ask!(self, who, "/etcdserverpb.Auth/UserAdd", add, Done);
            }
            1 => {
                ask!(self, who, "/etcdserverpb.Auth/UserDelete", named(&user, ""), Done);
            }
            2 if user != "root" => {
                let password = dice.pick(&PASSWORDS);
                ask!(self, who, "/etcdserverpb.Auth/UserChangePassword", named(&user, password), Done);
            }
            3 | 4 => {
                ask!(self, who, "/etcdserverpb.Auth/UserGrantRole", named(&user, &role), Done);
            }
            5 => {
                ask!(self, who, "/etcdserverpb.Auth/UserRevokeRole", named(&user, &role), Done);
            }
            6 => {
                ask!(self, who, "/etcdserverpb.Auth/RoleAdd", named(&role, ""), Done);
            }
            7 if dice.one_in(3) => {
                ask!(self, who, "/etcdserverpb.Auth/RoleDelete", named(&role, ""), Done);
            }
            8..11 => {
                let (key, range_end) = interval(dice);
                let permission = WirePermission { kind: dice.roll(3) as i32, key, range_end };
                let grant = Grant { role, permission: Some(permission) };
                ask!(self, who, "/etcdserverpb.Auth/RoleGrantPermission", grant, Done);
            }
            11 => {
                let (key, range_end) = interval(dice);
                let revoke = pb::PbAuthRoleRevokePermissionRequest {
                    role,
                    key: key.into(),
                    range_end: range_end.into(),
                };
                ask!(self, who, "/etcdserverpb.Auth/RoleRevokePermission", revoke, Done);
            }
            12 => {
                let who = dice.pick(&["root", "ann", "bob", "nobody", "forger"]);
                ask!(self, who, "/etcdserverpb.Auth/UserGet", named(&user, ""), Names);
                // What root may by itself 3.4 does not show, later versions and the hub do.
                let role = if role == "root" { "r1".to_owned() } else { role };
                ask!(self, who, "/etcdserverpb.Auth/RoleGet", named(&role, ""), Permissions);
            }
            13 => {
                ask!(self, who, "/etcdserverpb.Auth/UserList", Empty {}, Names);
                ask!(self, who, "/etcdserverpb.Auth/RoleList", Empty {}, Names);
            }
            14 if dice.one_in(4) => {
                ask!(self, who, "/etcdserverpb.Auth/AuthDisable", Empty {}, Done);
                // While there are no users 3.4 still minds a token that is over, later versions do not.
                ask!(self, "nobody", "/etcdserverpb.Auth/AuthEnable", Empty {}, Done);
                self.login("root", "one").await;
            }
            _ => self.login(&user, dice.pick(&PASSWORDS)).await,
        }
    }

    async fn access(&mut self, dice: &mut Dice) {
        let who = dice.pick(&["ann", "ann", "ann", "bob", "bob", "bob", "cert", "root", "nobody", "forger"]);
        let (key, range_end) = interval(dice);
        let (key, range_end) = (Vec::from(key), Vec::from(range_end));
        let prev_kv = dice.one_in(2);
        let lease = if dice.one_in(4) { 1 + dice.roll(2) as i64 } else { 0 };
        let put = pb::PbPutRequest { key: key.clone(), lease, prev_kv, ..Default::default() };
        let range = pb::PbRangeRequest {
            key: key.clone(),
            range_end: range_end.clone(),
            serializable: dice.one_in(2),
            ..Default::default()
        };
        let delete = pb::PbDeleteRequest { key: key.clone(), range_end: range_end.clone(), prev_kv };
        match dice.roll(12) {
            0..3 => {
                ask!(self, who, "/etcdserverpb.KV/Put", put, pb::PbPutResponse);
            }
            3..6 => {
                ask!(self, who, "/etcdserverpb.KV/Range", range, pb::PbRangeResponse);
            }
            6 => {
                ask!(self, who, "/etcdserverpb.KV/DeleteRange", delete, pb::PbDeleteResponse);
            }
            7..9 => {
                let txn = txn(dice, &put, &range, &delete);
                ask!(self, who, "/etcdserverpb.KV/Txn", txn, pb::PbTxnResponse);
            }
            9 => {
                let grant = pb::PbLeaseGrantRequest { id: 1 + dice.roll(2) as i64, ttl: 1000 };
                ask!(self, "root", "/etcdserverpb.Lease/LeaseGrant", grant, pb::PbLeaseGrantResponse);
            }
            // Whoever did not say who it is may end a lease in 3.4.
            10 if who == "forger" || self.tokens.contains_key(who) => {
                let revoke = pb::PbLeaseRevokeRequest { id: 1 + dice.roll(2) as i64 };
                ask!(self, who, "/etcdserverpb.Lease/LeaseRevoke", revoke, pb::PbLeaseRevokeResponse);
            }
            _ => {
                // Only for root, though there is nothing that either server would do.
                let hash = pb::PbHashKvRequest::default();
                let (hub, etcd) = self.tokens_of(who);
                let path = "/etcdserverpb.Maintenance/HashKV";
                let hub: Result<pb::PbHashKvResponse, Status> =
                    call_as(hub.as_deref(), &self.hub, path, hash).await;
                let etcd: Result<pb::PbHashKvResponse, Status> =
                    call_as(etcd.as_deref(), &self.etcd, path, hash).await;
                // The checksums are of other things, and 3.4 forgets to say its refusals in gRPC's words here.
                assert_eq!(hub.is_ok(), etcd.is_ok(), "{who}: {hub:?} {etcd:?}");
            }
        }
    }
}

/// A key and an end, also for permissions. In the middle of the keys, so that they meet.
fn interval(dice: &mut Dice) -> (Bytes, Bytes) {
    let key = dice.pick(&["a", "b", "b", "c", "d", "\0"]);
    let end = dice.pick(&["", "", "", "\0", "b", "c", "d", "e", "b\0"]);
    // An end before the start is nothing; what that permits nobody needs to know.
    let end = if end > key || end.is_empty() || end == "\0" { end } else { "" };
    (Bytes::from_static(key.as_bytes()), Bytes::from_static(end.as_bytes()))
}

fn txn(
    dice: &mut Dice,
    put: &pb::PbPutRequest,
    range: &pb::PbRangeRequest,
    delete: &pb::PbDeleteRequest,
) -> pb::PbTxnRequest {
    use pb::PbTxnOpRequest as Op;
    // That a put in a transaction needs more than the right to write is newer than 3.4.
    let put = pb::PbPutRequest { prev_kv: false, lease: 0, ..put.clone() };
    // Nor does Debian's 3.4 look into a transaction within the transaction; later versions and the hub do.
    let mut op = || {
        let request = match dice.roll(4) {
            0 => Op::RequestPut(put.clone()),
            1 => Op::RequestDeleteRange(delete.clone()),
            _ => Op::RequestRange(range.clone()),
        };
        pb::PbTxnRequestOp { request: Some(request) }
    };
    let compare = pb::PbCompare {
        key: put.key.clone(),
        result: 1,
        target_union: Some(pb::PbTargetUnion::Version(0)),
        ..Default::default()
    };
    pb::PbTxnRequest { compare: vec![compare], success: vec![op()], failure: vec![op()] }
}

#[tokio::test(flavor = "multi_thread")]
async fn random_users_may_do_the_same() {
    for seed in 1..=6 * effort() as u64 {
        println!("seed {seed}");
        let dir = tempfile::tempdir().unwrap();
        let etcd = Etcd::start_with(dir.path(), &["--bcrypt-cost", "4"]).await;
        let fixture = Fixture::start().await;
        let mut both = Both {
            hub: channel(&fixture.hub.address().to_string()).await,
            etcd: channel(&etcd.address).await,
            tokens: HashMap::new(),
            allowed: 0,
            denied: 0,
        };
        both.start().await;
        let mut dice = Dice::seeded(seed);
        for _ in 0..600 {
            if dice.one_in(6) {
                both.login(dice.pick(&["ann", "bob"]), dice.pick(&PASSWORDS)).await;
            } else if dice.one_in(3) {
                both.administer(&mut dice).await;
            } else {
                both.access(&mut dice).await;
            }
        }
        println!("{} allowed, {} denied", both.allowed, both.denied);
        assert!(both.allowed > 50 && both.denied > 50);
    }
}
