//! The users and roles of a running hub or etcd.
//!
//! Invariant: a password is only passed on.

use super::{Remote, RemoteError};
use etcd_client::{Permission as Wire, PermissionType, RoleRevokePermissionOptions, UserAddOptions};
use mvcc::{Permission, PermissionKind};

impl Remote {
    /// Has every call checked from now on. Takes a user `root` with the role `root`.
    pub async fn enable_users(&self) -> Result<(), RemoteError> {
        let mut auth = self.client.auth_client();
        self.ask("switch users on", auth.auth_enable()).await.map(drop)
    }

    /// Lets everybody do everything from now on.
    pub async fn disable_users(&self) -> Result<(), RemoteError> {
        let mut auth = self.client.auth_client();
        self.ask("switch users off", auth.auth_disable()).await.map(drop)
    }

    /// Their names.
    pub async fn users(&self) -> Result<Vec<String>, RemoteError> {
        let mut auth = self.client.auth_client();
        Ok(self.ask("list its users", auth.user_list()).await?.users().to_vec())
    }

    /// A user's roles.
    pub async fn user(&self, user: &str) -> Result<Vec<String>, RemoteError> {
        let mut auth = self.client.auth_client();
        Ok(self.ask("show the user", auth.user_get(user)).await?.roles().to_vec())
    }

    /// Adds a user; one without a password comes by a certificate with that name only.
    pub async fn add_user(&self, user: &str, password: Option<String>) -> Result<(), RemoteError> {
        let mut auth = self.client.auth_client();
        let options = password.is_none().then(|| UserAddOptions::new().with_no_pwd());
        let added = auth.user_add(user, password.unwrap_or_default(), options);
        self.ask("add the user", added).await.map(drop)
    }

    /// Removes a user.
    pub async fn delete_user(&self, user: &str) -> Result<(), RemoteError> {
        let mut auth = self.client.auth_client();
        self.ask("delete the user", auth.user_delete(user)).await.map(drop)
    }

    /// Gives a user another password; logins with the old one are over.
    pub async fn change_password(&self, user: &str, password: String) -> Result<(), RemoteError> {
        let mut auth = self.client.auth_client();
        self.ask("change the password", auth.user_change_password(user, password)).await.map(drop)
    }

    /// Gives a user a role.
    pub async fn grant_role(&self, user: &str, role: &str) -> Result<(), RemoteError> {
        let mut auth = self.client.auth_client();
        self.ask("grant the role", auth.user_grant_role(user, role)).await.map(drop)
    }

    /// Takes a role from a user.
    pub async fn revoke_role(&self, user: &str, role: &str) -> Result<(), RemoteError> {
        let mut auth = self.client.auth_client();
        self.ask("revoke the role", auth.user_revoke_role(user, role)).await.map(drop)
    }

    /// Their names.
    pub async fn roles(&self) -> Result<Vec<String>, RemoteError> {
        let mut auth = self.client.auth_client();
        Ok(self.ask("list its roles", auth.role_list()).await?.roles().to_vec())
    }

    /// What a role's users may do.
    pub async fn role(&self, role: &str) -> Result<Vec<Permission>, RemoteError> {
        let mut auth = self.client.auth_client();
        let answer = self.ask("show the role", auth.role_get(role)).await?;
        let permission = |wire: &Wire| Permission {
            kind: match wire.get_type() {
                0 => PermissionKind::Read,
                1 => PermissionKind::Write,
                _ => PermissionKind::ReadWrite,
            },
            key: wire.key().to_vec().into(),
            range_end: wire.range_end().to_vec().into(),
        };
        Ok(answer.permissions().iter().map(permission).collect())
    }

    /// Adds a role, which allows nothing yet.
    pub async fn add_role(&self, role: &str) -> Result<(), RemoteError> {
        let mut auth = self.client.auth_client();
        self.ask("add the role", auth.role_add(role)).await.map(drop)
    }

    /// Removes a role, also from its users.
    pub async fn delete_role(&self, role: &str) -> Result<(), RemoteError> {
        let mut auth = self.client.auth_client();
        self.ask("delete the role", auth.role_delete(role)).await.map(drop)
    }

    /// Allows a role's users something.
    pub async fn grant_permission(&self, role: &str, permission: Permission) -> Result<(), RemoteError> {
        let kind = match permission.kind {
            PermissionKind::Read => PermissionType::Read,
            PermissionKind::Write => PermissionType::Write,
            PermissionKind::ReadWrite => PermissionType::Readwrite,
        };
        let mut wire = Wire::new(kind, permission.key);
        if !permission.range_end.is_empty() {
            wire = wire.with_range_end(permission.range_end);
        }
        let mut auth = self.client.auth_client();
        self.ask("grant the permission", auth.role_grant_permission(role, wire)).await.map(drop)
    }

    /// Takes back what was granted for exactly this range; an empty end is one key.
    pub async fn revoke_permission(&self, role: &str, key: &[u8], end: &[u8]) -> Result<(), RemoteError> {
        let options = (!end.is_empty()).then(|| RoleRevokePermissionOptions::new().with_range_end(end));
        let mut auth = self.client.auth_client();
        self.ask("revoke the permission", auth.role_revoke_permission(role, key, options)).await.map(drop)
    }
}
