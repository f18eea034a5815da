//! Who asks, and whether they may: the apply thread's side of users and roles.
//!
//! Tokens live here, in memory only: after a restart clients log in again, as with etcd's simple tokens. Invariant:
//! with users enabled no request reaches the store that its caller may not make; the check and the request are one step
//! of one thread, so what was allowed when it was checked is allowed when it is done.

use crate::dispatch::Answer;
use crate::request::{AlarmRequest, Reply, Request, WatchKind, WatchRequest};
use crate::watchers::Outgoing;
use mvcc::{Applied, AuthCommand, Caller, Error, PasswordHash, Permission, Revision, Store};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// How a caller proves who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Credentials {
    /// What a login gave out. Goes before the certificate.
    pub(crate) token: Option<String>,
    /// The common name of the certificate that the connection showed and the hub's authority signed.
    pub(crate) common_name: Option<Arc<str>>,
}

/// What the Auth service asks.
#[derive(Debug)]
pub(crate) enum AuthRequest {
    Change(AuthCommand),
    UserGet(String),
    UserList,
    RoleGet(String),
    RoleList,
    Status,
    /// The stored password of a user who logs in, and the revision of users that it is of.
    Password(String),
    /// Gives out a token, made of what is random, if users are still as they were when the password was checked.
    Login {
        name: String,
        revision: u64,
        random: String,
    },
}

/// What it is answered; a field that was not asked for is empty.
#[derive(Debug, Default)]
pub(crate) struct AuthAnswer {
    /// The store's.
    pub(crate) revision: Revision,
    pub(crate) enabled: bool,
    pub(crate) auth_revision: u64,
    /// Users or roles.
    pub(crate) names: Vec<String>,
    pub(crate) permissions: Vec<Permission>,
    pub(crate) password: Option<PasswordHash>,
    pub(crate) token: String,
}

struct Token {
    user: String,
    /// Use moves it.
    deadline: Duration,
}

pub(crate) struct Guard {
    ttl: Duration,
    tokens: HashMap<String, Token>,
    /// Counts logins, as etcd's raft index does in its tokens.
    logins: u64,
}

impl Guard {
    pub(crate) fn new(ttl: Duration) -> Self {
        Self { ttl, tokens: HashMap::new(), logins: 0 }
    }

    /// Whether this request may be made.
    pub(crate) fn admit(
        &mut self,
        store: &Store,
        now: Duration,
        credentials: Option<&Credentials>,
        request: &Request,
    ) -> Result<(), Error> {
        let auth = store.auth();
        if !auth.is_enabled() {
            return Ok(());
        }
        let caller = self.caller(now, credentials);
        match request {
            Request::Range(range, _) => store.may_range(caller, range),
            Request::Put(put, _) => store.may_put(caller, put),
            Request::DeleteRange(delete, _) => store.may_delete_range(caller, delete),
            Request::Txn(txn, _) => store.may_txn(caller, txn),
            Request::LeaseRevoke(id, _) => store.may_revoke(caller, *id),
            Request::LeaseTimeToLive { id, keys: true, .. } => store.may_list_keys(caller, *id),
            // etcd 3.4 lets anybody do these; whoever is not let in should not fill the store or empty its history.
            Request::LeaseGrant(..) | Request::Leases(_) => auth.check_known(caller?),
            Request::Compact { .. } => auth.check_root(caller?),
            Request::Hash { .. } | Request::Defragment(_) | Request::Snapshot { .. } | Request::Root(_) => {
                auth.check_root(caller?)
            }
            // Raising one stops the hub, disarming one lets it overrun; to look is to ask whether it is well.
            Request::Alarm(AlarmRequest::Raise(_) | AlarmRequest::Disarm(_), _) => auth.check_root(caller?),
            Request::Alarm(AlarmRequest::List, _) => Ok(()),
            Request::Watch(watch) => match &watch.kind {
                WatchKind::Create { watcher, .. } => auth.check_read(caller?, &watcher.range),
                WatchKind::Cancel { .. } | WatchKind::Progress => Ok(()),
            },
            Request::Auth(request, _) => match request {
                AuthRequest::UserGet(name) => auth.check_user_get(caller?, name),
                AuthRequest::RoleGet(name) => auth.check_role_get(caller?, name),
                AuthRequest::Password(_) | AuthRequest::Login { .. } => Ok(()),
                _ => auth.check_root(caller?),
            },
            // Open in etcd too: whoever knows a lease's number may keep it, and whether the hub is well is no secret.
            Request::LeaseKeepAlive { .. } | Request::LeaseTimeToLive { .. } | Request::Status(_) => Ok(()),
            Request::As(..) => Err(Error::PermissionDenied), // nobody asks in two names
        }
    }

    fn caller<'a>(&'a mut self, now: Duration, credentials: Option<&'a Credentials>) -> Caller<'a> {
        let Some(credentials) = credentials else { return Ok(None) };
        let Some(token) = &credentials.token else { return Ok(credentials.common_name.as_deref()) };
        let ttl = self.ttl;
        match self.tokens.get_mut(token) {
            Some(token) if token.deadline > now => {
                token.deadline = now + ttl;
                Ok(Some(&token.user))
            }
            _ => Err(Error::InvalidAuthToken),
        }
    }

    /// Does what the Auth service asks, which was admitted.
    pub(crate) fn execute(
        &mut self,
        store: &mut Store,
        now: Duration,
        request: AuthRequest,
    ) -> Result<Applied<AuthAnswer>, Error> {
        let auth = store.auth();
        let mut answer = AuthAnswer {
            revision: store.revision(),
            enabled: auth.is_enabled(),
            auth_revision: auth.revision(),
            ..AuthAnswer::default()
        };
        match request {
            AuthRequest::Change(command) => {
                let gone = match &command {
                    AuthCommand::UserDelete { name } | AuthCommand::UserChangePassword { name, .. } => {
                        Some(name.clone())
                    }
                    _ => None,
                };
                let applied = store.auth_change(command)?;
                if !store.auth().is_enabled() {
                    self.tokens.clear();
                }
                if let Some(gone) = gone {
                    self.tokens.retain(|_, token| token.user != gone);
                }
                return Ok(applied.map(|()| answer));
            }
            AuthRequest::UserGet(name) => answer.names.clone_from(&auth.user(&name)?.roles),
            AuthRequest::UserList => answer.names = auth.users().cloned().collect(),
            AuthRequest::RoleGet(name) => answer.permissions = auth.role(&name)?,
            AuthRequest::RoleList => answer.names = auth.roles().cloned().collect(),
            AuthRequest::Status => {}
            AuthRequest::Password(name) => {
                if !auth.is_enabled() {
                    return Err(Error::AuthNotEnabled);
                }
                let user = auth.user(&name).map_err(|_| Error::AuthFailed)?;
                answer.password.clone_from(&user.password);
            }
            AuthRequest::Login { name, revision, random } => {
                if !auth.is_enabled() {
                    return Err(Error::AuthNotEnabled);
                }
                if auth.revision() != revision {
                    return Err(Error::AuthOldRevision);
                }
                answer.token = self.give_out(now, name, &random);
            }
        }
        Ok(Applied { response: answer, records: Vec::new(), events: None })
    }

    fn give_out(&mut self, now: Duration, user: String, random: &str) -> String {
        self.tokens.retain(|_, token| token.deadline > now); // nobody else looks for those that are over
        self.logins += 1;
        let token = format!("{random}.{}", self.logins);
        self.tokens.insert(token.clone(), Token { user, deadline: now + self.ttl });
        token
    }
}

/// The answer to a request that is not admitted.
pub(crate) fn refuse(request: Request, error: Error, revision: Revision) -> Answer {
    fn no<T: Send + 'static>(reply: Reply<T>, error: Error) -> Answer {
        Box::new(move || {
            let _ = reply.send(Err(error)); // the client may be gone
        })
    }
    match request {
        Request::Range(_, reply) => no(reply, error),
        Request::Put(_, reply) => no(reply, error),
        Request::DeleteRange(_, reply) => no(reply, error),
        Request::Txn(_, reply) => no(reply, error),
        Request::Compact { reply, .. } => no(reply, error),
        Request::LeaseGrant(_, reply) => no(reply, error),
        Request::LeaseRevoke(_, reply) => no(reply, error),
        Request::LeaseKeepAlive { reply, .. } => no(reply, error),
        Request::LeaseTimeToLive { reply, .. } => no(reply, error),
        Request::Leases(reply) => no(reply, error),
        Request::Hash { reply, .. } => no(reply, error),
        Request::Status(reply) => no(reply, error),
        Request::Alarm(_, reply) => no(reply, error),
        Request::Defragment(reply) | Request::Root(reply) => no(reply, error),
        Request::Snapshot { reply, .. } => no(reply, error),
        Request::Auth(_, reply) => no(reply, error),
        Request::As(_, request) => refuse(*request, error, revision),
        Request::Watch(WatchRequest { permit, .. }) => Box::new(move || {
            // etcd sends the whole status as text here.
            let code = crate::request::status(error).code();
            let reason = format!("rpc error: code = {code:?} desc = {error}");
            permit.send(Outgoing::Refused { id: -1, revision, reason });
        }),
    }
}
