//! A request as an endpoint gets it, and what the choice of the endpoint goes by.
//!
//! Invariant: a request that leaves here is one that every reader understands in the same way.

use crate::body::RequestBody;
use crate::forward::Client;
use crate::headers;
use crate::service::Service;
use crate::table::{Balance, Policy};
use crate::upstream::Upstream;
use bytes::Bytes;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Request, Uri, Version};
use muster_core::balance::{hash, stick};

/// The request again, if its body can be had twice.
pub(crate) fn copy(parts: &Parts, body: &RequestBody) -> Option<(Parts, RequestBody)> {
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
pub(crate) fn prepare(client: &Client, parts: &mut Parts, chunked: bool, upgrade: Option<&HeaderValue>) {
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
pub(crate) fn id(random: u64) -> HeaderValue {
    let mut digits = [0; 16];
    for (place, digit) in digits.iter_mut().enumerate() {
        *digit = b"0123456789abcdef"[(random >> (60 - 4 * place)) as usize & 0xf];
    }
    HeaderValue::from_maybe_shared(Bytes::copy_from_slice(&digits)).expect("digits make a header value")
}

/// The request as this endpoint's protocol has it.
pub(crate) fn address(upstream: &Upstream, mut parts: Parts, body: RequestBody) -> Request<RequestBody> {
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
pub(crate) fn key(policy: &Policy, client: &Client, headers: &HeaderMap) -> Option<u64> {
    match &policy.balance {
        Balance::HashIp => Some(hash(0, client.forwarded.as_bytes())),
        Balance::HashHeader(name) => headers.get(name.as_str()).map(|value| hash(0, value.as_bytes())),
        Balance::HashCookie(name) => headers::cookie(headers, name).map(|value| hash(0, value.as_bytes())),
        _ => None,
    }
}

/// The instance that a client came to before.
pub(crate) fn sticky(service: &model::ServiceName, headers: &HeaderMap) -> Option<u64> {
    let value = headers::cookie(headers, &format!("{service}_route"))?;
    u64::from_str_radix(value, 16).ok()
}

pub(crate) fn cookie(service: &Service, instance: &str, tls: bool) -> String {
    let secure = if tls { "; Secure" } else { "" };
    format!("{}_route={:016x}; Path=/; HttpOnly; SameSite=Lax{secure}", service.name, stick(instance))
}
