//! Users, roles and what they may do: etcd's auth store.
//!
//! Pure: passwords come in hashed, and who a caller is has been found out by somebody else (a token, a certificate).
//! Invariants: `revision` grows with every change that could change an answer of [`Auth::permits`]; a role that does
//! not exist grants nothing; while enabled there is a user `root` with the role `root`.

use crate::access::Access;
use crate::error::Error;
use crate::noun::{KeyRange, Record};
use crate::store::{Applied, Store};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::fmt;

/// The user and the role that may do everything.
pub const ROOT: &str = "root";

/// A hashed password, as etcd stores it. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordHash(pub Bytes);

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordHash(…)")
    }
}

/// A user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// None if the user logs in by certificate only (etcd's `no_password`).
    pub password: Option<PasswordHash>,
    /// The names of its roles, sorted. Any of them may have been deleted before the user had it.
    pub roles: Vec<String>,
}

impl User {
    fn is_root(&self) -> bool {
        self.has(ROOT)
    }

    fn has(&self, role: &str) -> bool {
        self.roles.iter().any(|name| name == role)
    }
}

/// What a permission allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PermissionKind {
    /// To read and to watch.
    Read,
    /// To write and to delete.
    Write,
    /// Both.
    ReadWrite,
}

/// A permission of a role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permission {
    /// What it allows.
    pub kind: PermissionKind,
    /// The first key.
    pub key: Bytes,
    /// As in etcd's ranges: empty for the key alone, one zero byte for everything from it on.
    pub range_end: Bytes,
}

/// A change to users and roles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuthCommand {
    /// Starts to check who asks. Needs a user `root` with the role `root`.
    Enable,
    /// Ends it.
    Disable,
    /// Adds a user.
    UserAdd {
        /// Its name.
        name: String,
        /// Its password; none for a user without.
        password: Option<PasswordHash>,
    },
    /// Deletes a user.
    UserDelete {
        /// Its name.
        name: String,
    },
    /// Changes the password of a user that has one.
    UserChangePassword {
        /// Its name.
        name: String,
        /// The new password.
        password: PasswordHash,
    },
    /// Gives a user a role.
    UserGrantRole {
        /// The user.
        user: String,
        /// The role.
        role: String,
    },
    /// Takes a role from a user.
    UserRevokeRole {
        /// The user.
        user: String,
        /// The role.
        role: String,
    },
    /// Adds a role.
    RoleAdd {
        /// Its name.
        name: String,
    },
    /// Deletes a role, also from the users that have it.
    RoleDelete {
        /// Its name.
        name: String,
    },
    /// Gives a role a permission, or changes the kind of the one it has for the same range.
    RoleGrantPermission {
        /// The role.
        role: String,
        /// The permission.
        permission: Permission,
    },
    /// Takes the permission for exactly this range from a role.
    RoleRevokePermission {
        /// The role.
        role: String,
        /// Of the permission.
        key: Bytes,
        /// Of the permission.
        range_end: Bytes,
    },
}

/// Users, roles, and whether they matter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Auth {
    pub(crate) enabled: bool,
    /// Of users and roles; has nothing to do with that of the keys. A new store is at 1.
    pub(crate) revision: u64,
    pub(crate) users: BTreeMap<String, User>,
    pub(crate) roles: BTreeMap<String, Vec<Permission>>,
}

impl Default for Auth {
    fn default() -> Self {
        Self { enabled: false, revision: 1, users: BTreeMap::new(), roles: BTreeMap::new() }
    }
}

impl Auth {
    /// Users and roles that were kept elsewhere. `revision` is at least 1.
    pub fn new(
        enabled: bool,
        revision: u64,
        users: impl IntoIterator<Item = (String, User)>,
        roles: impl IntoIterator<Item = (String, Vec<Permission>)>,
    ) -> Self {
        let mut auth = Self { enabled, revision: revision.max(1), ..Self::default() };
        auth.users.extend(users);
        auth.roles.extend(roles);
        // Sorted, as they are looked for.
        for user in auth.users.values_mut() {
            user.roles.sort_unstable();
            user.roles.dedup();
        }
        for permissions in auth.roles.values_mut() {
            permissions.sort_by(|a, b| a.key.cmp(&b.key));
        }
        auth
    }

    /// Out of the state of a [`Record::Auth`]; none if it is damaged.
    pub fn of_state(state: &[u8]) -> Option<Self> {
        Self::decode(state)
    }

    /// As a record; it replaces those before it.
    pub fn record(&self) -> Record {
        Record::Auth { state: self.encode() }
    }

    /// Whether there is a user who may do everything, without whom users must not be in force.
    pub fn has_root(&self) -> bool {
        self.users.get(ROOT).is_some_and(User::is_root)
    }

    /// All users by name.
    pub fn user_entries(&self) -> impl Iterator<Item = (&String, &User)> {
        self.users.iter()
    }

    /// All roles by name, with what was granted to them by key.
    pub fn role_entries(&self) -> impl Iterator<Item = (&String, &Vec<Permission>)> {
        self.roles.iter()
    }

    /// Whether it is checked who asks.
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Of users and roles.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// A user.
    pub fn user(&self, name: &str) -> Result<&User, Error> {
        self.users.get(name).ok_or(Error::UserNotFound)
    }

    /// All users' names in order.
    pub fn users(&self) -> impl Iterator<Item = &String> {
        self.users.keys()
    }

    /// The permissions of a role, by key. The role `root` shows the one that it always has.
    pub fn role(&self, name: &str) -> Result<Vec<Permission>, Error> {
        let permissions = self.roles.get(name).ok_or(Error::RoleNotFound)?;
        if name == ROOT {
            let range_end = Bytes::from_static(b"\0");
            return Ok(vec![Permission { kind: PermissionKind::ReadWrite, key: Bytes::new(), range_end }]);
        }
        Ok(permissions.clone())
    }

    /// All roles' names in order.
    pub fn roles(&self) -> impl Iterator<Item = &String> {
        self.roles.keys()
    }

    /// Whether `user` (none: nobody said who asks) may do what only root may.
    pub fn check_root(&self, user: Option<&str>) -> Result<(), Error> {
        if !self.enabled {
            return Ok(());
        }
        let user = self.known(user)?.ok_or(Error::UserNotFound)?;
        if user.is_root() { Ok(()) } else { Err(Error::PermissionDenied) }
    }

    /// Whether `user` is somebody.
    pub fn check_known(&self, user: Option<&str>) -> Result<(), Error> {
        if !self.enabled {
            return Ok(());
        }
        self.known(user)?.map(|_| ()).ok_or(Error::PermissionDenied)
    }

    /// Whether `user` may read all of `range`.
    pub fn check_read(&self, user: Option<&str>, range: &KeyRange) -> Result<(), Error> {
        self.permits(user, range, PermissionKind::Read)
    }

    /// Whether `user` may write all of `range`.
    pub fn check_write(&self, user: Option<&str>, range: &KeyRange) -> Result<(), Error> {
        self.permits(user, range, PermissionKind::Write)
    }

    /// Users see themselves; root sees all.
    pub fn check_user_get(&self, user: Option<&str>, name: &str) -> Result<(), Error> {
        if user.unwrap_or_default() == name { Ok(()) } else { self.check_root(user) }
    }

    /// Users see their roles; root sees all.
    pub fn check_role_get(&self, user: Option<&str>, role: &str) -> Result<(), Error> {
        let own = user.and_then(|name| self.users.get(name)).is_some_and(|user| user.has(role));
        if own { Ok(()) } else { self.check_root(user) }
    }

    fn known(&self, user: Option<&str>) -> Result<Option<&User>, Error> {
        let name = user.filter(|name| !name.is_empty()).ok_or(Error::UserEmpty)?;
        Ok(self.users.get(name))
    }

    fn permits(&self, user: Option<&str>, range: &KeyRange, kind: PermissionKind) -> Result<(), Error> {
        if !self.enabled {
            return Ok(());
        }
        // Unlike for what only root may do, a name that is known to be empty is merely unknown.
        let name = user.ok_or(Error::UserEmpty)?;
        let user = self.users.get(name).ok_or(Error::PermissionDenied)?;
        if user.is_root() {
            return Ok(());
        }
        let permissions = user.roles.iter().filter_map(|role| self.roles.get(role)).flatten();
        let granted = permissions.filter(|own| own.kind == kind || own.kind == PermissionKind::ReadWrite);
        if Access::new(granted).covers(range) { Ok(()) } else { Err(Error::PermissionDenied) }
    }

    /// Does it, or refuses and changes nothing. True if there is something to make durable.
    fn change(&mut self, command: AuthCommand) -> Result<bool, Error> {
        match command {
            AuthCommand::Enable => return self.enable(),
            AuthCommand::Disable => {
                if !self.enabled {
                    return Ok(false);
                }
                self.enabled = false;
            }
            AuthCommand::UserAdd { name, password } => self.user_add(name, password)?,
            AuthCommand::UserDelete { name } => {
                if self.enabled && name == ROOT {
                    return Err(Error::InvalidAuthManagement);
                }
                self.users.remove(&name).ok_or(Error::UserNotFound)?;
            }
            AuthCommand::UserChangePassword { name, password } => {
                let user = self.user_mut(&name)?;
                if let Some(old) = &mut user.password {
                    *old = password;
                }
            }
            AuthCommand::UserGrantRole { user, role } => return self.grant(&user, role),
            AuthCommand::UserRevokeRole { user, role } => self.revoke(&user, &role)?,
            AuthCommand::RoleAdd { name } => {
                if name.is_empty() {
                    return Err(Error::RoleEmpty);
                }
                if self.roles.contains_key(&name) {
                    return Err(Error::RoleExists);
                }
                self.roles.insert(name, Vec::new());
            }
            AuthCommand::RoleDelete { name } => {
                if self.enabled && name == ROOT {
                    return Err(Error::InvalidAuthManagement);
                }
                self.roles.remove(&name).ok_or(Error::RoleNotFound)?;
                for user in self.users.values_mut() {
                    user.roles.retain(|role| *role != name);
                }
            }
            AuthCommand::RoleGrantPermission { role, permission } => {
                grant_permission(self.role_mut(&role)?, permission);
            }
            AuthCommand::RoleRevokePermission { role, key, range_end } => {
                let permissions = self.role_mut(&role)?;
                let before = permissions.len();
                permissions.retain(|own| own.key != key || own.range_end != range_end);
                if permissions.len() == before {
                    return Err(Error::PermissionNotGranted);
                }
            }
        }
        self.revision += 1;
        Ok(true)
    }

    fn enable(&mut self) -> Result<bool, Error> {
        if self.enabled {
            return Ok(false);
        }
        let root = self.users.get(ROOT).ok_or(Error::RootUserMissing)?;
        if !root.is_root() {
            return Err(Error::RootRoleMissing);
        }
        self.enabled = true; // without a new revision, as in etcd
        Ok(true)
    }

    fn user_add(&mut self, name: String, password: Option<PasswordHash>) -> Result<(), Error> {
        if name.is_empty() {
            return Err(Error::UserEmpty);
        }
        if self.users.contains_key(&name) {
            return Err(Error::UserExists);
        }
        self.users.insert(name, User { password, roles: Vec::new() });
        Ok(())
    }

    fn grant(&mut self, user: &str, role: String) -> Result<bool, Error> {
        let exists = role == ROOT || self.roles.contains_key(&role);
        let user = self.user_mut(user)?;
        if !exists {
            return Err(Error::RoleNotFound);
        }
        match user.roles.binary_search(&role) {
            Ok(_) => Ok(false),
            Err(place) => {
                user.roles.insert(place, role);
                self.revision += 1;
                Ok(true)
            }
        }
    }

    fn revoke(&mut self, user: &str, role: &str) -> Result<(), Error> {
        if self.enabled && user == ROOT && role == ROOT {
            return Err(Error::InvalidAuthManagement);
        }
        let user = self.user_mut(user)?;
        let place = user.roles.iter().position(|own| own == role).ok_or(Error::RoleNotGranted)?;
        user.roles.remove(place);
        Ok(())
    }

    fn user_mut(&mut self, name: &str) -> Result<&mut User, Error> {
        self.users.get_mut(name).ok_or(Error::UserNotFound)
    }

    fn role_mut(&mut self, name: &str) -> Result<&mut Vec<Permission>, Error> {
        self.roles.get_mut(name).ok_or(Error::RoleNotFound)
    }
}

/// Kept sorted by key. As in etcd only the first permission of a key is looked at: the second of two with the same key
/// and other ends is not changed but joined by another, and the broader kind of the two counts.
fn grant_permission(permissions: &mut Vec<Permission>, permission: Permission) {
    let place = permissions.partition_point(|own| own.key < permission.key);
    match permissions.get_mut(place) {
        Some(own) if own.key == permission.key && own.range_end == permission.range_end => {
            own.kind = permission.kind;
        }
        _ => {
            let place = permissions.partition_point(|own| own.key <= permission.key);
            permissions.insert(place, permission);
        }
    }
}

impl Store {
    /// Users and roles.
    pub fn auth(&self) -> &Auth {
        &self.auth
    }

    /// Changes users and roles.
    pub fn auth_change(&mut self, command: AuthCommand) -> Result<Applied<()>, Error> {
        let changed = self.auth.change(command)?;
        let records = if changed { vec![self.auth_record()] } else { Vec::new() };
        Ok(Applied { response: (), records, events: None })
    }

    /// Users and roles as a record; it replaces those before it.
    pub fn auth_record(&self) -> Record {
        self.auth.record()
    }
}
