//! Users and roles on the target, as on the source.
//!
//! No server tells its users' passwords, so new users on the target get one that nobody knows. Users are never put into
//! force there: who may do everything could not log in. Invariant: afterwards each role and user of the source is on the
//! target with the same permissions and roles, and what only the target has is left alone.

use super::MigrateError;
use crate::auth::random_letters;
use crate::remote::Remote;
use etcd_client::{Permission, PermissionType, RoleRevokePermissionOptions};
use std::collections::BTreeSet;

/// What was copied.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Access {
    /// Roles of the source, all of them on the target now.
    pub roles: u64,
    /// Users of the source, all of them on the target now.
    pub users: u64,
    /// Those of them that are new there, and need a password.
    pub without_password: Vec<String>,
}

/// The role that may do everything; what it may is told, but cannot be granted.
const ROOT: &str = mvcc::auth::ROOT;

/// Kind, key and end of the range of a permission.
type Granted = BTreeSet<(i32, Vec<u8>, Vec<u8>)>;

/// Copies; roles and users that differ are made equal only if `force`.
pub(super) async fn copy(from: &Remote, to: &Remote, force: bool) -> Result<Access, MigrateError> {
    let mut access = Access::default();
    let there = roles(to).await?;
    for role in roles(from).await? {
        access.roles += 1;
        let is = if there.contains(&role) {
            Some(permissions(to, &role).await?)
        } else {
            to.ask("add a role", to.client.auth_client().role_add(role.as_str())).await?;
            None
        };
        let should = permissions(from, &role).await?;
        if role == ROOT || is.as_ref() == Some(&should) {
            continue;
        }
        if is.is_some() && !force {
            return Err(MigrateError::AccessDiffers { what: "role", name: role });
        }
        let is = is.unwrap_or_default();
        for (_, key, end) in is.difference(&should) {
            let options = RoleRevokePermissionOptions::new().with_range_end(end.clone());
            let mut client = to.client.auth_client();
            let revoked = client.role_revoke_permission(role.as_str(), key.clone(), Some(options));
            to.ask("revoke a permission", revoked).await?;
        }
        for (kind, key, end) in should.difference(&is) {
            let kind = PermissionType::try_from(*kind).unwrap_or(PermissionType::Read); // the least
            let permission = Permission::new(kind, key.clone()).with_range_end(end.clone());
            let mut client = to.client.auth_client();
            let granted = client.role_grant_permission(role.as_str(), permission);
            to.ask("grant a permission", granted).await?;
        }
    }
    let there = users(to).await?;
    for user in users(from).await? {
        access.users += 1;
        let should = roles_of(from, &user).await?;
        let is = if there.contains(&user) {
            roles_of(to, &user).await?
        } else {
            let password = random_letters().map_err(MigrateError::Random)?;
            to.ask("add a user", to.client.auth_client().user_add(user.as_str(), password, None)).await?;
            access.without_password.push(user.clone());
            BTreeSet::new()
        };
        if there.contains(&user) && is != should && !force {
            return Err(MigrateError::AccessDiffers { what: "user", name: user });
        }
        for role in is.difference(&should) {
            let mut client = to.client.auth_client();
            to.ask("revoke a role", client.user_revoke_role(user.as_str(), role.as_str())).await?;
        }
        for role in should.difference(&is) {
            let mut client = to.client.auth_client();
            to.ask("grant a role", client.user_grant_role(user.as_str(), role.as_str())).await?;
        }
    }
    Ok(access)
}

async fn roles(remote: &Remote) -> Result<Vec<String>, MigrateError> {
    let mut client = remote.client.auth_client();
    Ok(remote.ask("list its roles", client.role_list()).await?.roles().to_vec())
}

async fn users(remote: &Remote) -> Result<Vec<String>, MigrateError> {
    let mut client = remote.client.auth_client();
    Ok(remote.ask("list its users", client.user_list()).await?.users().to_vec())
}

async fn roles_of(remote: &Remote, user: &str) -> Result<BTreeSet<String>, MigrateError> {
    let mut client = remote.client.auth_client();
    Ok(remote.ask("show a user", client.user_get(user)).await?.roles().iter().cloned().collect())
}

async fn permissions(remote: &Remote, role: &str) -> Result<Granted, MigrateError> {
    let mut client = remote.client.auth_client();
    let answer = remote.ask("show a role", client.role_get(role)).await?;
    let parts = |own: &Permission| (own.get_type(), own.key().to_vec(), own.range_end().to_vec());
    Ok(answer.permissions().iter().map(parts).collect())
}
