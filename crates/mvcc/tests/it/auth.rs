//! Users and roles: the rules, one by one; and that they come back from their records.

use mvcc::{
    Applied, AuthCommand as C, Error, KeyRange, LeaseGrantRequest, LeaseId, PasswordHash, Permission,
    PermissionKind, PutRequest, Record, RequestOp, Store, TxnRequest,
};
use proptest::collection::vec;
use proptest::prelude::*;
use std::time::Duration;

fn change(store: &mut Store, command: C) -> Result<Vec<Record>, Error> {
    store.auth_change(command).map(|Applied { records, .. }| records)
}

fn user(name: &str) -> C {
    C::UserAdd { name: name.into(), password: Some(PasswordHash("hash".into())) }
}

fn role(name: &str) -> C {
    C::RoleAdd { name: name.into() }
}

fn give(user: &str, role: &str) -> C {
    C::UserGrantRole { user: user.into(), role: role.into() }
}

fn grant(role: &str, kind: PermissionKind, key: &'static str, end: &'static str) -> C {
    let permission = Permission { kind, key: key.into(), range_end: end.into() };
    C::RoleGrantPermission { role: role.into(), permission }
}

/// Root; ann with `[a, c)` to read and `b` to write.
fn with_users() -> Store {
    let mut store = Store::new();
    let commands = [
        user("root"),
        give("root", "root"),
        user("ann"),
        role("r"),
        give("ann", "r"),
        grant("r", PermissionKind::Read, "a", "b"),
        grant("r", PermissionKind::ReadWrite, "b", ""),
        grant("r", PermissionKind::Read, "b\0", "c"),
        C::Enable,
    ];
    for command in commands {
        change(&mut store, command).unwrap();
    }
    store
}

#[test]
fn enabling_takes_a_root() {
    let mut store = Store::new();
    assert_eq!(change(&mut store, C::Enable), Err(Error::RootUserMissing));
    change(&mut store, user("root")).unwrap();
    assert_eq!(change(&mut store, C::Enable), Err(Error::RootRoleMissing));
    assert_eq!(store.auth().check_root(None), Ok(())); // not yet
    change(&mut store, give("root", "root")).unwrap(); // the role need not exist
    let before = store.auth().revision();
    change(&mut store, C::Enable).unwrap();
    assert_eq!(store.auth().revision(), before);
    assert_eq!(change(&mut store, C::Enable).unwrap(), []); // nothing to store
    let managed = Err(Error::InvalidAuthManagement);
    assert_eq!(change(&mut store, C::UserDelete { name: "root".into() }), managed);
    assert_eq!(change(&mut store, C::RoleDelete { name: "root".into() }), managed);
    let revoke = C::UserRevokeRole { user: "root".into(), role: "root".into() };
    assert_eq!(change(&mut store, revoke), managed);
}

#[test]
fn permissions_add_up() {
    let store = with_users();
    let auth = store.auth();
    let read =
        |key: &'static str, end: &'static str| auth.check_read(Some("ann"), &KeyRange::from_wire(key, end));
    assert_eq!(read("a", "c"), Ok(()));
    assert_eq!(read("a", "d"), Err(Error::PermissionDenied));
    assert_eq!(auth.check_write(Some("ann"), &KeyRange::key("b")), Ok(()));
    assert_eq!(auth.check_write(Some("ann"), &KeyRange::key("a")), Err(Error::PermissionDenied));
    assert_eq!(auth.check_write(Some("bob"), &KeyRange::key("b")), Err(Error::PermissionDenied));
    assert_eq!(auth.check_write(None, &KeyRange::key("b")), Err(Error::UserEmpty));
    assert_eq!(auth.check_write(Some("root"), &KeyRange::all()), Ok(()));
}

#[test]
fn a_deleted_role_is_nobodys() {
    let mut store = with_users();
    change(&mut store, C::RoleDelete { name: "r".into() }).unwrap();
    assert!(store.auth().user("ann").unwrap().roles.is_empty());
    change(&mut store, role("r")).unwrap();
    assert_eq!(store.auth().check_read(Some("ann"), &KeyRange::key("a")), Err(Error::PermissionDenied));
}

#[test]
fn a_put_needs_all_that_it_touches() {
    let mut store = with_users();
    let lease = LeaseId(7);
    let _ = store.lease_grant(Duration::ZERO, LeaseGrantRequest { id: lease, ttl: 60 }).unwrap();
    let ann = Ok(Some("ann"));
    let put = PutRequest::new("b", "x").with_lease(lease);
    assert_eq!(store.may_put(ann, &put), Ok(()));
    let _ = store.put(PutRequest::new("a", "x").with_lease(lease)).unwrap();
    assert_eq!(store.may_put(ann, &put), Err(Error::PermissionDenied));
    assert_eq!(store.may_revoke(ann, lease), Err(Error::PermissionDenied));
    assert_eq!(store.may_list_keys(ann, lease), Ok(()));
    let txn = |put| TxnRequest { failure: vec![RequestOp::Put(put)], ..TxnRequest::default() };
    assert_eq!(store.may_txn(ann, &txn(PutRequest::new("b", "x"))), Ok(()));
    assert_eq!(store.may_txn(ann, &txn(put)), Err(Error::PermissionDenied));
    // Malformed before forbidden.
    assert_eq!(store.may_put(Err(Error::InvalidAuthToken), &PutRequest::new("", "")), Err(Error::EmptyKey));
    let well = PutRequest::new("b", "");
    assert_eq!(store.may_put(Err(Error::InvalidAuthToken), &well), Err(Error::InvalidAuthToken));
}

#[test]
fn a_record_of_another_format_is_refused() {
    let store = with_users();
    let Record::Auth { state } = store.auth_record() else { panic!() };
    for cut in 0..state.len() {
        let record = Record::Auth { state: state.slice(..cut) };
        assert!(Store::replay([record], Duration::ZERO).is_err(), "{cut}");
    }
}

fn name() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["root", "ann", "bob", "ä", ""]).prop_map(str::to_owned)
}

fn command() -> impl Strategy<Value = C> {
    let kind =
        prop::sample::select(vec![PermissionKind::Read, PermissionKind::Write, PermissionKind::ReadWrite]);
    let key = || prop::sample::select(vec!["", "a", "b", "c", "\0"]);
    prop_oneof![
        Just(C::Enable),
        Just(C::Disable),
        (name(), any::<bool>())
            .prop_map(|(name, has)| { C::UserAdd { name, password: has.then(|| PasswordHash("h".into())) } }),
        name().prop_map(|name| C::UserDelete { name }),
        name().prop_map(|name| C::UserChangePassword { name, password: PasswordHash("other".into()) }),
        (name(), name()).prop_map(|(user, role)| C::UserGrantRole { user, role }),
        (name(), name()).prop_map(|(user, role)| C::UserRevokeRole { user, role }),
        name().prop_map(|name| C::RoleAdd { name }),
        name().prop_map(|name| C::RoleDelete { name }),
        (name(), kind, key(), key()).prop_map(|(role, kind, key, end)| grant(&role, kind, key, end)),
        (name(), key(), key()).prop_map(|(role, key, end)| C::RoleRevokePermission {
            role,
            key: key.into(),
            range_end: end.into(),
        }),
    ]
}

proptest! {
    #[test]
    fn users_come_back_from_their_records(commands in vec(command(), 0..60)) {
        let mut store = Store::new();
        let mut records = Vec::new();
        for command in commands {
            let before = store.clone();
            match change(&mut store, command) {
                Ok(more) if more.is_empty() => prop_assert_eq!(&store, &before),
                Ok(more) => records.extend(more),
                Err(_) => prop_assert_eq!(&store, &before),
            }
            prop_assert!(store.auth().revision() >= before.auth().revision());
            if store.auth().is_enabled() {
                prop_assert_eq!(store.auth().check_root(Some("root")), Ok(()));
            }
        }
        let replayed = Store::replay(records, Duration::ZERO).unwrap();
        prop_assert_eq!(replayed.store, store);
    }
}
