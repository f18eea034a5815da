//! The Auth service: users, roles, logins.
//!
//! etcd-client keeps some of this service's messages to itself, so it is written by hand on the path of each call.
//! Passwords are hashed with bcrypt: it is what etcd stores, so users can move between the two with their passwords.
//! Invariant: a password is hashed and checked outside the apply thread, and few at a time; it is never logged.

use crate::guard::{AuthAnswer, AuthRequest};
use crate::request::{Queue, Request, status};
use crate::rpc;
use crate::storage::Identity;
use bytes::Bytes;
use etcd_client::proto as pb;
use mvcc::{AuthCommand, Error, PasswordHash, Permission, PermissionKind};
use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::Semaphore;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::NamedService;
use tonic::{Code, Response, Status};

/// Passwords hashed at the same time. Each takes a core for as long as it is meant to.
const HASHING: usize = 2;

/// Attempts of a login while users change under it.
const LOGIN_ATTEMPTS: usize = 10;

/// How users log in.
#[derive(Debug, Clone)]
pub struct AuthConfig {
    /// bcrypt's cost, 4 to 31: each step doubles the work of a login and of guessing a password.
    pub bcrypt_cost: u32,
    /// How long a token that nobody uses stays valid.
    pub token_ttl: Duration,
}

impl Default for AuthConfig {
    /// etcd's: cost 10, 5 minutes.
    fn default() -> Self {
        Self { bcrypt_cost: 10, token_ttl: Duration::from_secs(300) }
    }
}

#[derive(Clone)]
pub(crate) struct AuthService {
    queue: Queue,
    identity: Identity,
    cost: u32,
    hashing: Arc<Semaphore>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Empty {}

#[derive(Clone, PartialEq, prost::Message)]
struct AuthStatusResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<pb::PbResponseHeader>,
    #[prost(bool, tag = "2")]
    enabled: bool,
    #[prost(uint64, tag = "3")]
    auth_revision: u64,
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
struct RoleGetResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<pb::PbResponseHeader>,
    #[prost(message, repeated, tag = "2")]
    permissions: Vec<WirePermission>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RoleGrantPermissionRequest {
    #[prost(string, tag = "1")]
    role: String,
    #[prost(message, optional, tag = "2")]
    permission: Option<WirePermission>,
}

impl AuthService {
    pub(crate) fn new(queue: Queue, identity: Identity, config: &AuthConfig) -> Self {
        let hashing = Arc::new(Semaphore::new(HASHING));
        Self { queue, identity, cost: config.bcrypt_cost, hashing }
    }

    async fn ask(&self, request: AuthRequest) -> Result<AuthAnswer, Status> {
        self.queue.ask(|reply| Request::Auth(request, reply)).await
    }

    async fn change(&self, command: AuthCommand) -> Result<Option<pb::PbResponseHeader>, Status> {
        let answer = self.ask(AuthRequest::Change(command)).await?;
        Ok(self.identity.header(answer.revision))
    }

    /// Runs what takes a core for long.
    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, bcrypt::BcryptError> + Send + 'static,
    ) -> Result<T, Status> {
        let _permit = self.hashing.acquire().await.map_err(|_| status(Error::Stopped))?;
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(|_| status(Error::Stopped))?.map_err(|error| Status::internal(error.to_string()))
    }

    async fn hash(&self, password: String) -> Result<PasswordHash, Status> {
        let cost = self.cost;
        let hash = self.work(move || bcrypt::hash(password, cost)).await?;
        Ok(PasswordHash(hash.into()))
    }

    async fn authenticate(&self, name: String, password: String) -> Result<AuthAnswer, Status> {
        for _ in 0..LOGIN_ATTEMPTS {
            let user = self.ask(AuthRequest::Password(name.clone())).await?;
            let Some(PasswordHash(stored)) = user.password else { return Err(status(Error::NoPasswordUser)) };
            let password = password.clone();
            let matches = self.work(move || {
                let stored = std::str::from_utf8(&stored).unwrap_or_default();
                bcrypt::verify(password, stored)
            });
            if !matches.await? {
                return Err(status(Error::AuthFailed));
            }
            let random = random_letters().map_err(|error| Status::internal(error.to_string()))?;
            let login = AuthRequest::Login { name: name.clone(), revision: user.auth_revision, random };
            match self.ask(login).await {
                Err(changed) if is_old(&changed) => {}
                answer => return answer,
            }
        }
        Err(status(Error::AuthOldRevision))
    }

    async fn user_add(
        &self,
        request: pb::PbAuthUserAddRequest,
    ) -> Result<Option<pb::PbResponseHeader>, Status> {
        let has_none = request.options.is_some_and(|options| options.no_password);
        let password = if has_none { None } else { Some(self.hash(request.password).await?) };
        self.change(AuthCommand::UserAdd { name: request.name, password }).await
    }

    async fn grant_permission(
        &self,
        request: RoleGrantPermissionRequest,
    ) -> Result<Option<pb::PbResponseHeader>, Status> {
        let permission = request.permission.ok_or_else(|| status(Error::PermissionNotGiven))?;
        let kind = match permission.kind {
            0 => PermissionKind::Read,
            1 => PermissionKind::Write,
            2 => PermissionKind::ReadWrite,
            _ => return Err(status(Error::InvalidAuthManagement)),
        };
        let permission = Permission { kind, key: permission.key, range_end: permission.range_end };
        self.change(AuthCommand::RoleGrantPermission { role: request.role, permission }).await
    }
}

fn is_old(refusal: &Status) -> bool {
    refusal.code() == Code::InvalidArgument && refusal.message() == Error::AuthOldRevision.to_string()
}

fn wire_permission(permission: Permission) -> WirePermission {
    let kind = match permission.kind {
        PermissionKind::Read => 0,
        PermissionKind::Write => 1,
        PermissionKind::ReadWrite => 2,
    };
    WirePermission { kind, key: permission.key, range_end: permission.range_end }
}

/// What nobody can guess: 16 letters of 52, as etcd's tokens begin.
pub(crate) fn random_letters() -> Result<String, getrandom::Error> {
    const LETTERS: &[u8; 52] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut letters = String::with_capacity(16);
    while letters.len() < 16 {
        let mut random = [0; 32];
        getrandom::fill(&mut random)?;
        // Of 64 equally likely numbers those without a letter are left out, so that all letters are equally likely.
        let chosen = random.iter().filter_map(|byte| LETTERS.get(usize::from(byte & 63)));
        letters.extend(chosen.take(16 - letters.len()).map(|letter| char::from(*letter)));
    }
    Ok(letters)
}

impl NamedService for AuthService {
    const NAME: &'static str = "etcdserverpb.Auth";
}

/// One method: `$answer` of what came, on behalf of who sent it.
macro_rules! method {
    ($service:expr, $http:expr, |$own:ident, $request:ident: $kind:ty| $answer:expr) => {
        rpc::unary($http, |request: tonic::Request<$kind>| {
            let $own = AuthService { queue: $service.queue.by(&request), ..$service.clone() };
            let $request = request.into_inner();
            async move { Ok(Response::new($answer)) }
        })
        .await
    };
}

impl AuthService {
    async fn answer(&self, http: http::Request<Body>) -> http::Response<Body> {
        use AuthCommand as C;
        let path = http.uri().path().to_owned();
        match path.strip_prefix("/etcdserverpb.Auth/").unwrap_or_default() {
            "AuthEnable" => method!(self, http, |own, _request: Empty| pb::PbAuthEnableResponse {
                header: own.change(C::Enable).await?
            }),
            "AuthDisable" => method!(self, http, |own, _request: Empty| pb::PbAuthDisableResponse {
                header: own.change(C::Disable).await?
            }),
            "AuthStatus" => method!(self, http, |own, _request: Empty| {
                let answer = own.ask(AuthRequest::Status).await?;
                let header = own.identity.header(answer.revision);
                AuthStatusResponse { header, enabled: answer.enabled, auth_revision: answer.auth_revision }
            }),
            "Authenticate" => method!(self, http, |own, request: pb::PbAuthenticateRequest| {
                let answer = own.authenticate(request.name, request.password).await?;
                let header = own.identity.header(answer.revision);
                pb::PbAuthenticateResponse { header, token: answer.token }
            }),
            method if method.starts_with("User") => self.answer_user(method, http).await,
            method if method.starts_with("Role") => self.answer_role(method, http).await,
            method => rpc::unknown_method(Self::NAME, method),
        }
    }

    async fn answer_user(&self, method: &str, http: http::Request<Body>) -> http::Response<Body> {
        use AuthCommand as C;
        match method {
            "UserAdd" => method!(self, http, |own, request: pb::PbAuthUserAddRequest| {
                pb::PbAuthUserAddResponse { header: own.user_add(request).await? }
            }),
            "UserGet" => method!(self, http, |own, request: pb::PbAuthUserGetRequest| {
                let answer = own.ask(AuthRequest::UserGet(request.name)).await?;
                pb::PbAuthUserGetResponse {
                    header: own.identity.header(answer.revision),
                    roles: answer.names,
                }
            }),
            "UserList" => method!(self, http, |own, _request: Empty| {
                let answer = own.ask(AuthRequest::UserList).await?;
                pb::PbAuthUserListResponse {
                    header: own.identity.header(answer.revision),
                    users: answer.names,
                }
            }),
            "UserDelete" => method!(self, http, |own, request: pb::PbAuthUserDeleteRequest| {
                let header = own.change(C::UserDelete { name: request.name }).await?;
                pb::PbAuthUserDeleteResponse { header }
            }),
            "UserChangePassword" => {
                method!(self, http, |own, request: pb::PbAuthUserChangePasswordRequest| {
                    let password = own.hash(request.password).await?;
                    let header = own.change(C::UserChangePassword { name: request.name, password }).await?;
                    pb::PbAuthUserChangePasswordResponse { header }
                })
            }
            "UserGrantRole" => method!(self, http, |own, request: pb::PbAuthUserGrantRoleRequest| {
                let header = own.change(C::UserGrantRole { user: request.user, role: request.role }).await?;
                pb::PbAuthUserGrantRoleResponse { header }
            }),
            "UserRevokeRole" => method!(self, http, |own, request: pb::PbAuthUserRevokeRoleRequest| {
                let header = own.change(C::UserRevokeRole { user: request.name, role: request.role }).await?;
                pb::PbAuthUserRevokeRoleResponse { header }
            }),
            method => rpc::unknown_method(Self::NAME, method),
        }
    }

    async fn answer_role(&self, method: &str, http: http::Request<Body>) -> http::Response<Body> {
        use AuthCommand as C;
        match method {
            "RoleAdd" => method!(self, http, |own, request: pb::PbAuthRoleAddRequest| {
                pb::PbAuthRoleAddResponse { header: own.change(C::RoleAdd { name: request.name }).await? }
            }),
            "RoleGet" => method!(self, http, |own, request: pb::PbAuthRoleGetRequest| {
                let answer = own.ask(AuthRequest::RoleGet(request.role)).await?;
                let permissions = answer.permissions.into_iter().map(wire_permission).collect();
                RoleGetResponse { header: own.identity.header(answer.revision), permissions }
            }),
            "RoleList" => method!(self, http, |own, _request: Empty| {
                let answer = own.ask(AuthRequest::RoleList).await?;
                pb::PbAuthRoleListResponse {
                    header: own.identity.header(answer.revision),
                    roles: answer.names,
                }
            }),
            "RoleDelete" => method!(self, http, |own, request: pb::PbAuthRoleDeleteRequest| {
                pb::PbAuthRoleDeleteResponse {
                    header: own.change(C::RoleDelete { name: request.role }).await?,
                }
            }),
            "RoleGrantPermission" => method!(self, http, |own, request: RoleGrantPermissionRequest| {
                pb::PbAuthRoleGrantPermissionResponse { header: own.grant_permission(request).await? }
            }),
            "RoleRevokePermission" => {
                method!(self, http, |own, request: pb::PbAuthRoleRevokePermissionRequest| {
                    let (key, range_end) = (request.key.into(), request.range_end.into());
                    let command = C::RoleRevokePermission { role: request.role, key, range_end };
                    pb::PbAuthRoleRevokePermissionResponse { header: own.change(command).await? }
                })
            }
            method => rpc::unknown_method(Self::NAME, method),
        }
    }
}

impl Service<http::Request<Body>> for AuthService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move { Ok(service.answer(request).await) })
    }
}
