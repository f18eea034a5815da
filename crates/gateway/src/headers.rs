//! What happens to headers on their way: whose host it is, what ends here, what is added.
//!
//! Invariant: a request that leaves here names one host, and nothing in it concerns the connection it came on.

use crate::refusal::Refusal;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Uri, Version};

pub(crate) static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub(crate) static X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub(crate) static X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
pub(crate) static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
static KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
static PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Refuses a head that some would read in another way than others, and makes one field of what HTTP/2 may cut up. What
/// HTTP/1 has to say about it `framing` and hyper have said before.
pub(crate) fn check(parts: &mut Parts, limit: usize) -> Result<(), Refusal> {
    let target = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let whole = parts.method == Method::OPTIONS && target == "*";
    // `GET name` is what CONNECT would say.
    let bare = parts.uri.authority().is_some() && parts.uri.scheme().is_none();
    if bare || !(target.starts_with('/') || whole) {
        return Err(Refusal::Malformed("the request's target is no path"));
    }
    if parts.version == Version::HTTP_2 {
        join_cookies(&mut parts.headers);
        if parts.headers.get_all(header::CONTENT_LENGTH).iter().nth(1).is_some() {
            return Err(Refusal::Malformed("the request has two lengths"));
        }
        if parts.headers.len() > limit {
            return Err(Refusal::Fields(limit));
        }
    }
    Ok(())
}

/// HTTP/2 may send one cookie a field; everybody else knows one field only (RFC 9113, 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(header::COOKIE).iter().nth(1).is_none() {
        return;
    }
    let all: Vec<_> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&all.join(&b"; "[..])) {
        headers.insert(header::COOKIE, joined);
    }
}

/// Why it is not clear for which host a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HostError {
    #[error("the request names no host")]
    Missing,
    #[error("the request names several hosts")]
    Several,
    #[error("the request names a host that is none")]
    Invalid,
}

/// The host that a request is for, with its port if it says one.
pub(crate) fn host(parts: &Parts) -> Result<&str, HostError> {
    let mut all = parts.headers.get_all(header::HOST).iter();
    let field = all.next();
    if all.next().is_some() {
        return Err(HostError::Several);
    }
    let field = field.map(|value| value.to_str().map_err(|_| HostError::Invalid)).transpose()?;
    let host = match (parts.uri.authority(), field) {
        // Absolute form, or HTTP/2. Both may be there, and then they say the same.
        (Some(authority), Some(field)) if !authority.as_str().eq_ignore_ascii_case(field) => {
            return Err(HostError::Several);
        }
        (Some(authority), _) => authority.as_str(),
        (None, Some(field)) => field,
        (None, None) => return Err(HostError::Missing),
    };
    if is_host(host) { Ok(host) } else { Err(HostError::Invalid) }
}

/// A name or address with or without a port: RFC 3986's `host [ ":" port ]` without what nobody uses.
fn is_host(text: &str) -> bool {
    let (name, port) = split_port(text);
    let digits = port.is_none_or(|port| port.len() <= 5 && port.bytes().all(|b| b.is_ascii_digit()));
    let name_is_fine = match name.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').is_some_and(|ip| ip.parse::<std::net::Ipv6Addr>().is_ok()),
        None => name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_')),
    };
    digits && !name.is_empty() && name.len() <= 255 && name_is_fine
}

fn split_port(host: &str) -> (&str, Option<&str>) {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, Some(port)),
        _ => (host, None),
    }
}

/// A host without its port.
pub(crate) fn without_port(host: &str) -> &str {
    split_port(host).0
}

/// Takes out what concerns the connection only (RFC 9110, 7.6.1). `TE: trailers` stays, for gRPC asks for it.
pub(crate) fn strip(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
            // Naming these is an attempt to have them taken out on the way.
            .filter(|name| !matches!(*name, header::HOST | header::CONTENT_LENGTH | header::TE))
            .collect();
        headers.remove(header::CONNECTION);
        for name in named {
            headers.remove(name);
        }
    }
    for name in [&KEEP_ALIVE, &PROXY_CONNECTION, &header::UPGRADE, &header::TRANSFER_ENCODING] {
        if headers.contains_key(name) {
            headers.remove(name);
        }
    }
    if headers.contains_key(header::TE) {
        let trailers = headers.get_all(header::TE).iter().any(|value| {
            value.to_str().is_ok_and(|value| value.split(',').any(|part| part.trim() == "trailers"))
        });
        headers.remove(header::TE);
        if trailers {
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
        }
    }
}

/// The protocol that a request asks to change to.
pub(crate) fn upgrade(parts: &Parts) -> Option<HeaderValue> {
    if parts.version != Version::HTTP_11 {
        return None;
    }
    let wanted = parts.headers.get(header::UPGRADE)?;
    let said = parts.headers.get_all(header::CONNECTION).iter().any(|value| {
        value
            .to_str()
            .is_ok_and(|value| value.split(',').any(|part| part.trim().eq_ignore_ascii_case("upgrade")))
    });
    // `h2c` is between the client and us, and we do not offer it that way.
    (said && !wanted.as_bytes().eq_ignore_ascii_case(b"h2c")).then(|| wanted.clone())
}

/// The path and query of a target, as an HTTP/1 request to an endpoint names it.
pub(crate) fn origin_form(uri: &Uri) -> Uri {
    if uri.authority().is_none() {
        return uri.clone();
    }
    match uri.path_and_query() {
        Some(path) => Uri::from(path.clone()),
        None => Uri::from_static("/"),
    }
}

/// Adds a value to the end of a list.
pub(crate) fn append_forwarded(headers: &mut HeaderMap, client: &HeaderValue) {
    let value = match headers.get(&X_FORWARDED_FOR) {
        None => client.clone(),
        Some(_) => {
            let mut list = Vec::new();
            for value in headers.get_all(&X_FORWARDED_FOR) {
                list.extend_from_slice(value.as_bytes());
                list.extend_from_slice(b", ");
            }
            list.extend_from_slice(client.as_bytes());
            HeaderValue::from_maybe_shared(bytes::Bytes::from(list)).unwrap_or_else(|_| client.clone())
        }
    };
    headers.insert(&X_FORWARDED_FOR, value);
}

/// A cookie's value.
pub(crate) fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .find_map(|value| value.split(';').find_map(|pair| pair.trim().strip_prefix(name)?.strip_prefix('=')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::Request;

    fn parts(uri: &str, hosts: &[&str]) -> Parts {
        let mut request = Request::builder().uri(uri);
        for host in hosts {
            request = request.header("host", *host);
        }
        request.body(()).expect("a request").into_parts().0
    }

    #[test]
    fn a_request_is_for_one_host() {
        assert_eq!(host(&parts("/", &["a.example:80"])), Ok("a.example:80"));
        assert_eq!(host(&parts("http://a.example/x", &["A.example"])), Ok("a.example"));
        assert_eq!(host(&parts("http://a/x", &["b"])), Err(HostError::Several));
        assert_eq!(host(&parts("/", &["a", "a"])), Err(HostError::Several));
        assert_eq!(host(&parts("/", &[])), Err(HostError::Missing));
        for bad in ["", "a b", "a/b", "a:b", "a@b", "a:80:80", "[::1", "a,b", ":80", "a:123456", "ä"] {
            assert_eq!(host(&parts("/", &[bad])), Err(HostError::Invalid), "{bad}");
        }
        assert_eq!(host(&parts("/", &["[::1]:80"])).map(without_port), Ok("[::1]"));
    }

    #[test]
    fn what_concerns_the_connection_ends_here() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Secret, host"),
            ("x-secret", "1"),
            ("host", "a"),
            ("te", "gzip, trailers"),
            ("keep-alive", "timeout=5"),
            ("upgrade", "websocket"),
            ("transfer-encoding", "chunked"),
            ("accept", "x"),
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        strip(&mut headers);
        let mut left: Vec<_> =
            headers.iter().map(|(n, v)| format!("{n}: {}", v.to_str().expect("text"))).collect();
        left.sort();
        assert_eq!(left, ["accept: x", "host: a", "te: trailers"]);
    }

    #[test]
    fn cookies_are_found_by_their_whole_name() {
        let mut headers = HeaderMap::new();
        headers.insert(header::COOKIE, HeaderValue::from_static("ab=1; b=2;a=3"));
        assert_eq!(cookie(&headers, "b"), Some("2"));
        assert_eq!(cookie(&headers, "a"), Some("3"));
        assert_eq!(cookie(&headers, "c"), None);
    }
}
