//! Users and roles as etcd keeps them in its buckets.
//!
//! Invariant: whoever could log in before can after, with the same password and the same rights: hashes go as they are.

use super::schema::{self, Permission, Role, User, UserOptions};
use bytes::Bytes;
use mvcc::{Auth, PasswordHash, PermissionKind};
use prost::Message;

type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// The bucket that says whether users are in force.
pub(super) fn flags(auth: &Auth) -> Pairs {
    vec![
        (schema::AUTH_ENABLED.into(), vec![u8::from(auth.is_enabled())]),
        (schema::AUTH_REVISION.into(), auth.revision().to_be_bytes().to_vec()),
    ]
}

/// The bucket of users.
pub(super) fn users(auth: &Auth) -> Pairs {
    let entry = |(name, user): (&String, &mvcc::User)| {
        let message = User {
            name: name.clone().into(),
            password: user.password.as_ref().map(|hash| hash.0.clone()).unwrap_or_default(),
            roles: user.roles.clone(),
            options: user.password.is_none().then_some(UserOptions { no_password: true }),
        };
        (name.clone().into_bytes(), message.encode_to_vec())
    };
    auth.user_entries().map(entry).collect()
}

/// The bucket of roles.
pub(super) fn roles(auth: &Auth) -> Pairs {
    let permission = |own: &mvcc::Permission| Permission {
        kind: match own.kind {
            PermissionKind::Read => 0,
            PermissionKind::Write => 1,
            PermissionKind::ReadWrite => 2,
        },
        key: own.key.clone(),
        range_end: own.range_end.clone(),
    };
    let entry = |(name, permissions): (&String, &Vec<mvcc::Permission>)| {
        let message =
            Role { name: name.clone().into(), permissions: permissions.iter().map(permission).collect() };
        (name.clone().into_bytes(), message.encode_to_vec())
    };
    auth.role_entries().map(entry).collect()
}

/// What was read so far. Each step is none for what cannot be read.
#[derive(Default)]
pub(super) struct Found {
    enabled: bool,
    revision: u64,
    users: Vec<(String, mvcc::User)>,
    roles: Vec<(String, Vec<mvcc::Permission>)>,
}

impl Found {
    pub(super) fn flag(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        if key == schema::AUTH_ENABLED.as_bytes() {
            self.enabled = value == [1];
        } else if key == schema::AUTH_REVISION.as_bytes() {
            self.revision = u64::from_be_bytes(value.try_into().ok()?);
        }
        Some(())
    }

    pub(super) fn user(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        let User { name, password, roles, options } = User::decode(value).ok()?;
        let without = options.is_some_and(|options| options.no_password);
        let password = (!without).then_some(PasswordHash(password));
        self.users.push((named(key, &name)?, mvcc::User { password, roles }));
        Some(())
    }

    pub(super) fn role(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        let Role { name, permissions } = Role::decode(value).ok()?;
        let permission = |Permission { kind, key, range_end }| {
            let kind = match kind {
                0 => PermissionKind::Read,
                1 => PermissionKind::Write,
                2 => PermissionKind::ReadWrite,
                _ => return None,
            };
            Some(mvcc::Permission { kind, key, range_end })
        };
        let permissions = permissions.into_iter().map(permission).collect::<Option<_>>()?;
        self.roles.push((named(key, &name)?, permissions));
        Some(())
    }

    pub(super) fn auth(self) -> Auth {
        Auth::new(self.enabled, self.revision, self.users, self.roles)
    }
}

/// The name, which an entry has twice.
fn named(key: &[u8], name: &Bytes) -> Option<String> {
    (key == name).then(|| String::from_utf8(key.to_vec()).ok())?
}
