//! A request's way: whose it is, to which endpoint, again if that may be, and back.
//!
//! Invariant: a request that may have reached an app is sent a second time only if its sender says that twice is the
//! same as once: by its method, or by an `Idempotency-Key`. After the first byte to the client nothing is tried again.

use crate::access_log::Line;
use crate::body::{Progress, RequestBody, ResponseBody, Stream, Tail};
use crate::headers;
use crate::io::Signs;
use crate::metrics::ServiceCounters;
use crate::outgoing;
use crate::refusal::{Refusal, own, redirect, refuse};
use crate::service::{Flight, Service};
use crate::table::Policy;
use crate::upstream::{Failed, Upstream};
use crate::worker::{Conn, Order, Worker};
use crate::{tcp, websocket};
use http_body::Body as _;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode, Version};
use hyper_util::rt::TokioIo;
use muster_core::balance::{Moment, Outcome, Place, Wish};
use std::convert::Infallible;
use std::error::Error as _;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// Bodies up to this size are awaited and sent in one piece with the request: that costs one write, a client that breaks off
/// reaches no endpoint, and the request can be sent again where that is allowed.
const KEPT: u64 = 64 << 10;
/// By it a client says that the same key twice is the same request.
static IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The client whose request it is.
pub(crate) struct Client {
    pub(crate) worker: Rc<Worker>,
    pub(crate) address: SocketAddr,
    /// Its address as it is told to endpoints.
    pub(crate) forwarded: HeaderValue,
    pub(crate) tls: bool,
    pub(crate) conn: Rc<Conn>,
}

/// A request under way on a client's connection.
pub(crate) struct Active {
    conn: Rc<Conn>,
    worker: Rc<Worker>,
    answered: bool,
    /// The client has something of the answer to take.
    owed: bool,
}

impl Active {
    fn new(client: &Client) -> Self {
        let signs = &client.conn.signs;
        signs.active.store(signs.active.load(Relaxed) + 1, Relaxed);
        signs.head.store(0, Relaxed);
        let (conn, worker) = (Rc::clone(&client.conn), Rc::clone(&client.worker));
        Self { conn, worker, answered: false, owed: false }
    }

    fn answered(&mut self) {
        self.answered = true;
        let answered = &self.conn.signs.answered;
        answered.store(answered.load(Relaxed).saturating_add(1), Relaxed);
    }

    /// Whether it is the client's turn: it was given a part of the answer and has not asked for the next.
    pub(crate) fn owes(&mut self, owed: bool) {
        let signs = &self.conn.signs;
        if owed {
            signs.given.store(self.worker.clock.load(Relaxed), Relaxed);
        }
        if self.owed != owed {
            self.owed = owed;
            let all = signs.owed.load(Relaxed);
            signs.owed.store(if owed { all + 1 } else { all.saturating_sub(1) }, Relaxed);
        }
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.owes(false);
        let signs = &self.conn.signs;
        signs.active.store(signs.active.load(Relaxed).saturating_sub(1), Relaxed);
        self.conn.since.set(self.worker.clock.load(Relaxed));
        if !self.answered {
            let abandoned = signs.abandoned.load(Relaxed).saturating_add(1);
            signs.abandoned.store(abandoned, Relaxed);
            // Each of them costs an endpoint work that nobody waits for.
            let limit = signs.answered.load(Relaxed).saturating_add(self.worker.config().limits.resets);
            if abandoned > limit {
                self.conn.order(Order::Stop);
            }
        }
    }
}

/// Answers a request.
pub(crate) async fn handle(
    client: Rc<Client>,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, Infallible> {
    let mut active = Active::new(&client);
    let signs = &client.conn.signs;
    let number = signs.requests.load(Relaxed) + 1;
    signs.requests.store(number, Relaxed);
    let suspect = signs.suspect.load(Relaxed);
    let http2 = request.version() == Version::HTTP_2;
    let mut response = if suspect != 0 && number >= suspect && !http2 {
        refuse(&client, Refusal::Ambiguous)
    } else {
        match forward(&client, request).await {
            Ok(response) => response,
            Err(refusal) => refuse(&client, refusal),
        }
    };
    if client.worker.closing.get() && !http2 && response.status() != StatusCode::SWITCHING_PROTOCOLS {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    active.answered();
    match response.body_mut() {
        ResponseBody::Endpoint { tail: Some(tail), .. } => tail.active = Some(active),
        _ => drop(active),
    }
    Ok(response)
}

/// What happens to one request.
async fn forward(client: &Rc<Client>, request: Request<Incoming>) -> Result<Response<ResponseBody>, Refusal> {
    let worker = &client.worker;
    let started = worker.now();
    let (mut parts, incoming) = request.into_parts();
    if parts.method == Method::CONNECT {
        return Err(Refusal::Connect);
    }
    if !parts.headers.contains_key(&headers::X_REQUEST_ID) {
        parts.headers.insert(&headers::X_REQUEST_ID, outgoing::id(worker.roll()));
    }
    headers::check(&mut parts, worker.config().limits.headers)?;
    let host = headers::host(&parts).map_err(Refusal::Host)?;
    let routes = Rc::clone(&worker.routes.borrow());
    let Some(service) = routes.find(headers::without_port(host), parts.uri.path()) else {
        return Err(Refusal::NoRoute(host.to_owned()));
    };
    let policy = service.policy();
    if policy.redirect && !client.tls {
        return Err(redirect(host, &parts.uri));
    }
    let line = worker.shared.log.as_ref().map(|log| {
        Box::new(Line::new(Arc::clone(log), client.address, client.tls, &parts, host, &service.name, started))
    });
    let length = incoming.size_hint();
    let limit = limit(&policy, worker);
    if length.lower() > limit {
        return Err(Refusal::TooLarge(limit));
    }
    let wants = headers::upgrade(&parts);
    let upgrade = wants.is_some().then(|| parts.extensions.remove::<OnUpgrade>()).flatten();
    let http2 = parts.version == Version::HTTP_2;
    let idempotent = is_idempotent(&parts);
    let body = if incoming.is_end_stream() {
        RequestBody::Empty
    } else if length.exact().is_some_and(|length| length <= KEPT) {
        let whole = tokio::time::timeout(worker.config().limits.idle_timeout, incoming.collect()).await;
        let whole = whole.map_err(|_| Refusal::Stalled)?.map_err(|_| Refusal::Body)?.to_bytes();
        if length.exact() != Some(whole.len() as u64) {
            return Err(Refusal::Body);
        }
        RequestBody::Whole(Some(whole))
    } else {
        let progress = Rc::<Progress>::default();
        let signs: Arc<Signs> = Arc::clone(&client.conn.signs);
        RequestBody::Stream(Stream { incoming, left: limit, progress, signs, http2 })
    };
    service.deposit();
    let counters = &service.counters;
    ServiceCounters::add(&counters.requests, 1);
    let key = outgoing::key(&policy, client, &parts.headers);
    let stick = policy.sticky.then(|| outgoing::sticky(&service.name, &parts.headers)).flatten();
    let chunked = body.size_hint().exact().is_none();
    outgoing::prepare(client, &mut parts, chunked, wants.as_ref().filter(|_| upgrade.is_some()));
    let mut attempt = Attempt {
        client,
        service,
        policy: &policy,
        line,
        // What is streamed cannot be sent twice, and what is not idempotent must not.
        again: idempotent && !matches!(body, RequestBody::Stream(_)) && upgrade.is_none(),
        upgrades: upgrade.is_some(),
        key,
        stick,
        started,
    };
    match attempt.run(parts, body).await {
        Ok(answered) => Ok(attempt.respond(answered, upgrade, stick)),
        Err(refusal) => {
            if let Some(mut line) = attempt.line.take() {
                line.refused(refusal.status());
                line.write(0, true);
            }
            Err(refusal)
        }
    }
}

/// An answer, and what it holds.
struct Answered {
    response: Response<Incoming>,
    tail: Box<Tail>,
}

struct Attempt<'a> {
    client: &'a Rc<Client>,
    service: &'a Rc<Service>,
    policy: &'a Policy,
    line: Option<Box<Line>>,
    /// The request may be sent a second time.
    again: bool,
    /// The connection is to become one of another protocol.
    upgrades: bool,
    key: Option<u64>,
    stick: Option<u64>,
    started: Moment,
}

impl Attempt<'_> {
    async fn run(&mut self, mut parts: Parts, mut body: RequestBody) -> Result<Answered, Refusal> {
        let worker = &self.client.worker;
        let service = self.service;
        // Where it was tried, since it was last waited for an endpoint.
        let mut tried: Vec<Place> = Vec::new();
        // How often it was tried at all, and how often it may have arrived.
        let (mut tries, mut lost) = (0, 0);
        // The same endpoint once more, on a new connection.
        let mut same: Option<(Flight, Rc<Upstream>)> = None;
        let mut last = Refusal::Empty(Rc::clone(service));
        loop {
            let fresh = same.is_some();
            let enough = tried.len() > self.policy.retries as usize;
            let picked = same.take().or_else(|| if enough { None } else { self.pick(&tried) });
            let Some((mut flight, upstream)) = picked else {
                // What has arrived somewhere is not kept for later.
                if matches!(last, Refusal::Lost(_)) || !self.wait().await {
                    return Err(last);
                }
                tried.clear();
                continue;
            };
            if self.upgrades && upstream.is_http2() {
                return Err(Refusal::CannotUpgrade(Rc::clone(service)));
            }
            let may_go_on = lost < self.policy.retries && tried.len() < self.policy.retries as usize;
            let spare = (self.again && may_go_on).then(|| outgoing::copy(&parts, &body)).flatten();
            let progress = match &body {
                RequestBody::Stream(stream) => Some(Rc::clone(&stream.progress)),
                _ => None,
            };
            let sent_at = worker.now();
            let request = outgoing::address(&upstream, parts, body);
            let sending = upstream.send(request, !self.again, fresh, self.policy.connect_timeout);
            let sent = match tokio::time::timeout(self.policy.timeout, sending).await {
                Ok(sent) => sent,
                Err(_) => {
                    flight.tell(worker.now(), Outcome::Unwell(self.policy.timeout));
                    return Err(Refusal::Late(Rc::clone(service)));
                }
            };
            let now = worker.now();
            match sent {
                Ok((response, connection)) => {
                    let took = now.saturating_sub(sent_at);
                    let unwell = matches!(
                        response.status(),
                        StatusCode::BAD_GATEWAY
                            | StatusCode::SERVICE_UNAVAILABLE
                            | StatusCode::GATEWAY_TIMEOUT
                    );
                    flight.tell(now, if unwell { Outcome::Unwell(took) } else { Outcome::Answered(took) });
                    if let Some(line) = &mut self.line {
                        line.answered(&upstream.instance, response.status(), tries, took);
                    }
                    flight.line = self.line.take();
                    service.counters.answered(response.status(), now.saturating_sub(self.started));
                    let tail = Tail { flight, upstream, connection, progress, bytes: 0, active: None };
                    return Ok(Answered { response, tail: Box::new(tail) });
                }
                Err(Failed::Connect(request)) => {
                    flight.tell(now, Outcome::Unreachable);
                    (parts, body) = (*request).into_parts();
                    last = Refusal::Unreachable(Rc::clone(service));
                }
                Err(Failed::Lost(error)) => {
                    if progress.as_ref().is_some_and(|progress| progress.too_large.get()) {
                        return Err(Refusal::TooLarge(limit(self.policy, worker)));
                    }
                    if progress.as_ref().is_some_and(|progress| !progress.done.get()) && is_clients(&error) {
                        return Err(Refusal::Body);
                    }
                    let gone = is_gone(&error);
                    flight.tell(now, if gone { Outcome::Unreachable } else { Outcome::Reset });
                    last = Refusal::Lost(Rc::clone(service));
                    let Some(spare) = spare.filter(|_| service.withdraw(now)) else {
                        return Err(last);
                    };
                    (parts, body) = spare;
                    lost += 1;
                    if !gone && !fresh {
                        // As a rule the endpoint had just closed an idle connection.
                        same = Some((flight, Rc::clone(&upstream)));
                        tries += 1;
                        ServiceCounters::add(&service.counters.retries, 1);
                        continue;
                    }
                }
            }
            tried.push(flight.place);
            tries += 1;
            ServiceCounters::add(&service.counters.retries, 1);
        }
    }

    fn pick(&self, tried: &[Place]) -> Option<(Flight, Rc<Upstream>)> {
        let worker = &self.client.worker;
        let wish = Wish { hash: self.key, stick: self.stick, tried, may_probe: self.again };
        self.service.pick(worker.now(), worker.roll(), &wish)
    }

    /// Waits for an endpoint; false if that has taken too long already.
    async fn wait(&self) -> bool {
        let left = (self.started + self.policy.hold).saturating_sub(self.client.worker.now());
        if left.is_zero() {
            return false;
        }
        self.service.wait(left).await;
        true
    }

    /// The response as the client gets it.
    fn respond(
        &self,
        answered: Answered,
        upgrade: Option<OnUpgrade>,
        stick: Option<u64>,
    ) -> Response<ResponseBody> {
        let Answered { response, mut tail } = answered;
        let (mut parts, incoming) = response.into_parts();
        if parts.status == StatusCode::SWITCHING_PROTOCOLS {
            return self.switch(upgrade, parts, incoming, tail);
        }
        headers::strip(&mut parts.headers);
        if self.policy.sticky && stick != Some(muster_core::balance::stick(&tail.upstream.instance)) {
            let cookie = outgoing::cookie(self.service, &tail.upstream.instance, self.client.tls);
            if let Ok(cookie) = HeaderValue::from_str(&cookie) {
                parts.headers.append(header::SET_COOKIE, cookie);
            }
        }
        parts.version = Version::HTTP_11;
        let body = if incoming.is_end_stream() {
            tail.bytes = 0;
            tail.end();
            ResponseBody::Endpoint { incoming, tail: None }
        } else {
            ResponseBody::Endpoint { incoming, tail: Some(tail) }
        };
        Response::from_parts(parts, body)
    }

    /// From here on it is not HTTP any more.
    fn switch(
        &self,
        upgrade: Option<OnUpgrade>,
        mut parts: hyper::http::response::Parts,
        incoming: Incoming,
        tail: Box<Tail>,
    ) -> Response<ResponseBody> {
        let to_endpoint = parts.extensions.remove::<OnUpgrade>();
        let (Some(to_client), Some(to_endpoint)) = (upgrade, to_endpoint) else {
            // Nobody asked for it.
            return own(StatusCode::BAD_GATEWAY, "the app changed the protocol without being asked\n");
        };
        let protocol = parts.headers.get(header::UPGRADE).cloned();
        headers::strip(&mut parts.headers);
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        if let Some(protocol) = protocol.clone() {
            parts.headers.insert(header::UPGRADE, protocol);
        }
        self.client.conn.http.set(false);
        let idle = self.policy.tunnel_timeout;
        let framed = protocol.as_ref().is_some_and(|name| name.as_bytes().eq_ignore_ascii_case(b"websocket"));
        let worker = Rc::clone(&self.client.worker);
        tokio::task::spawn_local(async move {
            let Tail { flight, upstream, .. } = *tail;
            let counted = worker.tunnel();
            let (Ok(client), Ok(endpoint)) = tokio::join!(to_client, to_endpoint) else { return };
            let (client, endpoint) = (TokioIo::new(client), TokioIo::new(endpoint));
            let bytes = if framed {
                let mask = (worker.roll() as u32).to_be_bytes();
                let over = async {
                    tokio::select! {
                        () = upstream.over() => {}
                        () = worker.over() => {}
                    }
                };
                websocket::tunnel(client, endpoint, idle, mask, over).await
            } else {
                tcp::tunnel(client, endpoint, idle).await
            };
            if let Ok(bytes) = bytes {
                flight.complete(bytes);
            }
            drop(counted);
        });
        drop(incoming);
        Response::from_parts(parts, ResponseBody::Own(None))
    }
}

fn limit(policy: &Policy, worker: &Worker) -> u64 {
    policy.max_body.unwrap_or_else(|| worker.config().limits.body_bytes)
}

/// Whether sending it twice is the same as once.
fn is_idempotent(parts: &Parts) -> bool {
    matches!(
        parts.method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
    ) || parts.headers.contains_key(&IDEMPOTENCY_KEY)
}

/// The endpoint's machine is gone, as far as the kernel can tell.
fn is_gone(error: &hyper::Error) -> bool {
    let gone = |kind| {
        use io::ErrorKind::{HostUnreachable, NetworkDown, NetworkUnreachable, TimedOut};
        matches!(kind, TimedOut | HostUnreachable | NetworkUnreachable | NetworkDown)
    };
    // HTTP/2's errors of a connection come as what its socket said, too.
    error
        .source()
        .and_then(|source| source.downcast_ref::<io::Error>())
        .is_some_and(|error| gone(error.kind()))
}

/// It was the client that broke off, not the endpoint.
fn is_clients(error: &hyper::Error) -> bool {
    error.is_user()
}
