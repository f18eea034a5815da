//! Users and roles as bytes, all of them in one record.
//!
//! There are few and they change rarely, so a record holds the whole state and replaces the one before it. Invariant:
//! what [`Auth::encode`] writes, [`Auth::decode`] reads back; anything else is refused, never guessed at.

use crate::auth::{Auth, PasswordHash, Permission, PermissionKind, User};
use bytes::Bytes;
use std::collections::BTreeMap;

/// The version of this layout, its first byte.
const FORMAT: u8 = 1;

impl Auth {
    /// `format | enabled u8 | revision u64 | users | roles`; a list is its length (u32) and its entries, bytes are
    /// their length (u32) and themselves.
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = vec![FORMAT, u8::from(self.enabled)];
        out.extend_from_slice(&self.revision.to_be_bytes());
        put_length(&mut out, self.users.len());
        for (name, user) in &self.users {
            put_bytes(&mut out, name.as_bytes());
            out.push(u8::from(user.password.is_some()));
            if let Some(password) = &user.password {
                put_bytes(&mut out, &password.0);
            }
            put_length(&mut out, user.roles.len());
            for role in &user.roles {
                put_bytes(&mut out, role.as_bytes());
            }
        }
        put_length(&mut out, self.roles.len());
        for (name, permissions) in &self.roles {
            put_bytes(&mut out, name.as_bytes());
            put_length(&mut out, permissions.len());
            for permission in permissions {
                out.push(match permission.kind {
                    PermissionKind::Read => 0,
                    PermissionKind::Write => 1,
                    PermissionKind::ReadWrite => 2,
                });
                put_bytes(&mut out, &permission.key);
                put_bytes(&mut out, &permission.range_end);
            }
        }
        out.into()
    }

    /// None if these are not the bytes of an encoding.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        if reader.byte()? != FORMAT {
            return None;
        }
        let enabled = reader.flag()?;
        let revision = reader.revision()?;
        let mut users = BTreeMap::new();
        for _ in 0..reader.length()? {
            let name = reader.string()?;
            let password = if reader.flag()? { Some(PasswordHash(reader.bytes()?)) } else { None };
            let count = reader.length()?;
            let roles = (0..count).map(|_| reader.string()).collect::<Option<_>>()?;
            users.insert(name, User { password, roles });
        }
        let mut roles = BTreeMap::new();
        for _ in 0..reader.length()? {
            let name = reader.string()?;
            let count = reader.length()?;
            let permissions = (0..count).map(|_| reader.permission()).collect::<Option<_>>()?;
            roles.insert(name, permissions);
        }
        reader.0.is_empty().then_some(Self { enabled, revision, users, roles })
    }
}

fn put_length(out: &mut Vec<u8>, length: usize) {
    let length = u32::try_from(length).expect("a request is at most some MiB");
    out.extend_from_slice(&length.to_be_bytes());
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_length(out, bytes.len());
    out.extend_from_slice(bytes);
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn flag(&mut self) -> Option<bool> {
        match self.byte()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    fn revision(&mut self) -> Option<u64> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_be_bytes(*first))
    }

    fn length(&mut self) -> Option<u32> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_be_bytes(*first))
    }

    fn bytes(&mut self) -> Option<Bytes> {
        let length = usize::try_from(self.length()?).ok()?;
        let (first, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(Bytes::copy_from_slice(first))
    }

    fn string(&mut self) -> Option<String> {
        String::from_utf8(self.bytes()?.into()).ok()
    }

    fn permission(&mut self) -> Option<Permission> {
        let kind = match self.byte()? {
            0 => PermissionKind::Read,
            1 => PermissionKind::Write,
            2 => PermissionKind::ReadWrite,
            _ => return None,
        };
        Some(Permission { kind, key: self.bytes()?, range_end: self.bytes()? })
    }
}
