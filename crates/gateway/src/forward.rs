//! A request's way: whose it is, to which endpoint, again if that may be, and back.
//!
//! Invariant: a request that may have reached an app is sent a second time only if its sender says that twice is the
//! same as once: by its method, or by an `Idempotency-Key`. After the first byte to the client nothing is tried again.

use crate::access_log::Line;
use crate::body::{Progress, RequestBody, ResponseBody, Stream, Tail};
use crate::headers::{self, HostError};
use crate::io::Signs;
use crate::metrics::ServiceCounters;
use crate::service::{Flight, Service};
use crate::table::{Balance, Policy};
use crate::tcp;
use crate::upstream::{Failed, Upstream};
use crate::worker::{Conn, Worker};
use bytes::Bytes;
use http_body::Body as _;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode, Uri, Version};
use hyper_util::rt::TokioIo;
use muster_core::balance::{Moment, Outcome, Place, Wish, hash, stick};
use std::convert::Infallible;
use std::error::Error as _;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

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
pub(crate) struct Active(Rc<Conn>, Rc<Worker>);

impl Active {
    fn new(client: &Client) -> Self {
        let signs = &client.conn.signs;
        signs.active.store(signs.active.load(Relaxed) + 1, Relaxed);
        signs.head.store(0, Relaxed);
        Self(Rc::clone(&client.conn), Rc::clone(&client.worker))
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        let signs = &self.0.signs;
        signs.active.store(signs.active.load(Relaxed).saturating_sub(1), Relaxed);
        self.0.since.set(self.1.clock.load(Relaxed));
    }
}

/// Why a request is answered by the gateway itself.
enum Refusal {
    /// The request can be understood in two ways; the connection ends.
    Ambiguous,
    Host(HostError),
    Connect,
    NoRoute(String),
    TooLarge(u64),
    Redirect(HeaderValue),
    Empty(Rc<Service>),
    /// No endpoint could be reached.
    Unreachable(Rc<Service>),
    /// The endpoint took the request and the connection was lost.
    Lost(Rc<Service>),
    Late(Rc<Service>),
    /// The client's body broke off.
    Body,
}

impl Refusal {
    fn status(&self) -> StatusCode {
        match self {
            Self::Ambiguous | Self::Host(_) | Self::Body => StatusCode::BAD_REQUEST,
            Self::Connect => StatusCode::METHOD_NOT_ALLOWED,
            Self::NoRoute(_) => StatusCode::NOT_FOUND,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Redirect(_) => StatusCode::PERMANENT_REDIRECT,
            Self::Empty(_) | Self::Unreachable(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Lost(_) => StatusCode::BAD_GATEWAY,
            Self::Late(_) => StatusCode::GATEWAY_TIMEOUT,
        }
    }
}

/// Answers a request.
pub(crate) async fn handle(
    client: Rc<Client>,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, Infallible> {
    let active = Active::new(&client);
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
        parts.headers.insert(&headers::X_REQUEST_ID, id(worker.roll()));
    }
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
    let idempotent = is_idempotent(&parts);
    let body = if incoming.is_end_stream() {
        RequestBody::Empty
    } else {
        let progress = Rc::<Progress>::default();
        let signs: Arc<Signs> = Arc::clone(&client.conn.signs);
        let body = RequestBody::Stream(Stream { incoming, left: limit, progress, signs });
        match length.exact() {
            Some(length) if length <= KEPT => {
                RequestBody::Whole(Some(body.collect().await.map_err(|_| Refusal::Body)?.to_bytes()))
            }
            _ => body,
        }
    };
    service.deposit();
    let counters = &service.counters;
    ServiceCounters::add(&counters.requests, 1);
    let key = key(&policy, client, &parts.headers);
    let stick = policy.sticky.then(|| sticky(&service.name, &parts.headers)).flatten();
    let chunked = body.size_hint().exact().is_none();
    prepare(client, &mut parts, chunked, wants.as_ref().filter(|_| upgrade.is_some()));
    let mut attempt = Attempt {
        client,
        service,
        policy: &policy,
        line,
        // What is streamed cannot be sent twice, and what is not idempotent must not.
        again: idempotent && !matches!(body, RequestBody::Stream(_)) && upgrade.is_none(),
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
    key: Option<u64>,
    stick: Option<u64>,
    started: Moment,
}

impl Attempt<'_> {
    async fn run(&mut self, mut parts: Parts, mut body: RequestBody) -> Result<Answered, Refusal> {
        let worker = &self.client.worker;
        let service = self.service;
        let mut tried: Vec<Place> = Vec::new();
        let mut tries = 0;
        // The same endpoint once more, on a new connection.
        let mut same: Option<(Flight, Rc<Upstream>)> = None;
        let mut last = Refusal::Unreachable(Rc::clone(service));
        loop {
            let fresh = same.is_some();
            let (mut flight, upstream) = match same.take() {
                Some(same) => same,
                None => match self.pick(&tried).await {
                    Some(picked) => picked,
                    None if tries == 0 => return Err(Refusal::Empty(Rc::clone(service))),
                    None => return Err(last),
                },
            };
            let may_go_on = tries < self.policy.retries;
            let spare = (self.again && may_go_on).then(|| copy(&parts, &body)).flatten();
            let progress = match &body {
                RequestBody::Stream(stream) => Some(Rc::clone(&stream.progress)),
                _ => None,
            };
            let sent_at = worker.now();
            let request = address(&upstream, parts, body);
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
                    if !may_go_on {
                        return Err(last);
                    }
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

    /// An endpoint; waits for one while the service has none.
    async fn pick(&self, tried: &[Place]) -> Option<(Flight, Rc<Upstream>)> {
        let worker = &self.client.worker;
        loop {
            let now = worker.now();
            let wish = Wish { hash: self.key, stick: self.stick, tried, may_probe: self.again };
            if let Some(picked) = self.service.pick(now, worker.roll(), &wish) {
                return Some(picked);
            }
            if !tried.is_empty() && !self.service.is_empty(now) {
                return None;
            }
            let left = (self.started + self.policy.hold).saturating_sub(now);
            if left.is_zero() {
                return None;
            }
            ServiceCounters::add(&self.service.counters.held, 1);
            let _ = tokio::time::timeout(left, self.service.changed.notified()).await; // looks again either way
        }
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
            let cookie = cookie(self.service, &tail.upstream.instance, self.client.tls);
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
        if let Some(protocol) = protocol {
            parts.headers.insert(header::UPGRADE, protocol);
        }
        self.client.conn.http.set(false);
        let idle = self.policy.tunnel_timeout;
        tokio::task::spawn_local(async move {
            let Tail { flight, .. } = *tail;
            if let (Ok(client), Ok(endpoint)) = tokio::join!(to_client, to_endpoint)
                && let Ok(bytes) = tcp::tunnel(TokioIo::new(client), TokioIo::new(endpoint), idle).await
            {
                flight.complete(bytes);
            }
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
    if let Some(inner) = error.source().and_then(|source| source.downcast_ref::<io::Error>()) {
        return gone(inner.kind());
    }
    false
}

/// It was the client that broke off, not the endpoint.
fn is_clients(error: &hyper::Error) -> bool {
    error.is_user()
}

/// The request again, if its body can be had twice.
fn copy(parts: &Parts, body: &RequestBody) -> Option<(Parts, RequestBody)> {
    let body = match body {
        RequestBody::Empty => RequestBody::Empty,
        RequestBody::Whole(bytes) => RequestBody::Whole(bytes.clone()),
        RequestBody::Stream(_) => return None,
    };
    let (mut copy, ()) = Request::new(()).into_parts();
    copy.method = parts.method.clone();
    copy.uri = parts.uri.clone();
    copy.version = parts.version;
    copy.headers = parts.headers.clone();
    Some((copy, body))
}

/// What is different for an endpoint than for a client, whichever endpoint it will be.
fn prepare(client: &Client, parts: &mut Parts, chunked: bool, upgrade: Option<&HeaderValue>) {
    // HTTP/2 says it in the target.
    if !parts.headers.contains_key(header::HOST)
        && let Some(Ok(host)) = parts.uri.authority().map(|host| HeaderValue::from_str(host.as_str()))
    {
        parts.headers.insert(header::HOST, host);
    }
    let headers = &mut parts.headers;
    headers::strip(headers);
    headers.remove(header::EXPECT); // answered by us as soon as the body is asked for
    if let Some(protocol) = upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, protocol.clone());
    }
    if chunked {
        // A body without a length: hyper sends none with a GET unless this says so.
        headers.remove(header::CONTENT_LENGTH);
        headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    headers::append_forwarded(headers, &client.forwarded);
    let proto = if client.tls { "https" } else { "http" };
    headers.insert(&headers::X_FORWARDED_PROTO, HeaderValue::from_static(proto));
    if let Some(host) = headers.get(header::HOST).cloned() {
        headers.insert(&headers::X_FORWARDED_HOST, host);
    }
}

/// Sixteen hexadecimal digits.
fn id(random: u64) -> HeaderValue {
    let mut digits = [0; 16];
    for (place, digit) in digits.iter_mut().enumerate() {
        *digit = b"0123456789abcdef"[(random >> (60 - 4 * place)) as usize & 0xf];
    }
    HeaderValue::from_maybe_shared(Bytes::copy_from_slice(&digits)).expect("digits make a header value")
}

/// The request as this endpoint's protocol has it.
fn address(upstream: &Upstream, mut parts: Parts, body: RequestBody) -> Request<RequestBody> {
    if upstream.is_http2() {
        let authority = parts.headers.remove(header::HOST);
        parts.headers.remove(header::TRANSFER_ENCODING);
        let mut uri = Uri::builder().scheme("http");
        if let Some(authority) = &authority {
            uri = uri.authority(authority.as_bytes());
        }
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        if let Ok(uri) = uri.path_and_query(path).build() {
            parts.uri = uri;
        }
        // Once more for another endpoint, which may speak HTTP/1.
        parts.version = Version::HTTP_2;
    } else {
        if !parts.headers.contains_key(header::HOST)
            && let Some(Ok(host)) = parts.uri.authority().map(|a| HeaderValue::from_str(a.as_str()))
        {
            parts.headers.insert(header::HOST, host);
        }
        if parts.uri.authority().is_some() {
            parts.uri = headers::origin_form(&parts.uri);
        }
        parts.version = Version::HTTP_11;
    }
    Request::from_parts(parts, body)
}

/// What the choice by hash goes by.
fn key(policy: &Policy, client: &Client, headers: &HeaderMap) -> Option<u64> {
    match &policy.balance {
        Balance::HashIp => Some(hash(0, client.forwarded.as_bytes())),
        Balance::HashHeader(name) => headers.get(name.as_str()).map(|value| hash(0, value.as_bytes())),
        Balance::HashCookie(name) => headers::cookie(headers, name).map(|value| hash(0, value.as_bytes())),
        _ => None,
    }
}

/// The instance that a client came to before.
fn sticky(service: &model::ServiceName, headers: &HeaderMap) -> Option<u64> {
    let value = headers::cookie(headers, &format!("{service}_route"))?;
    u64::from_str_radix(value, 16).ok()
}

fn cookie(service: &Service, instance: &str, tls: bool) -> String {
    let secure = if tls { "; Secure" } else { "" };
    format!("{}_route={:016x}; Path=/; HttpOnly; SameSite=Lax{secure}", service.name, stick(instance))
}

fn redirect(host: &str, uri: &Uri) -> Refusal {
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    match HeaderValue::from_str(&format!("https://{}{path}", headers::without_port(host))) {
        Ok(location) => Refusal::Redirect(location),
        Err(_) => Refusal::Host(HostError::Invalid),
    }
}

fn own(status: StatusCode, text: impl Into<Bytes>) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::Own(Some(text.into())));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// Our own answer.
fn refuse(client: &Client, refusal: Refusal) -> Response<ResponseBody> {
    client.worker.shared.refused();
    let status = refusal.status();
    let again = matches!(refusal, Refusal::Empty(_) | Refusal::Unreachable(_));
    // What the client sent may not have been read to its end, or cannot be relied on.
    let ends = matches!(
        refusal,
        Refusal::Ambiguous | Refusal::Host(_) | Refusal::Connect | Refusal::TooLarge(_) | Refusal::Body
    );
    let text = match &refusal {
        Refusal::Ambiguous => "the request's length can be read in two ways".to_owned(),
        Refusal::Host(error) => error.to_string(),
        Refusal::Connect => "this is no forward proxy".to_owned(),
        Refusal::NoRoute(host) => format!("no service answers for {host}"),
        Refusal::TooLarge(limit) => format!("a body may have {limit} bytes here"),
        Refusal::Redirect(_) => "use https".to_owned(),
        Refusal::Empty(service) => format!("{} has no instance at the moment", service.name),
        Refusal::Unreachable(service) => format!("no instance of {} could be reached", service.name),
        Refusal::Lost(service) => format!("{} ended the connection before it answered", service.name),
        Refusal::Late(service) => format!("{} did not answer in time", service.name),
        Refusal::Body => "the body broke off".to_owned(),
    };
    let mut response = own(status, text + "\n");
    let headers = response.headers_mut();
    match refusal {
        Refusal::Redirect(location) => {
            headers.insert(header::LOCATION, location);
        }
        Refusal::Empty(service)
        | Refusal::Unreachable(service)
        | Refusal::Lost(service)
        | Refusal::Late(service) => service.counters.answered(status, Duration::ZERO),
        _ => {}
    }
    if again {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    if ends {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
