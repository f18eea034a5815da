//! Requests that the gateway answers itself, and how.
//!
//! Invariant: what a client sent and was not read to its end, or cannot be relied on, ends its connection.

use crate::body::ResponseBody;
use crate::forward::Client;
use crate::headers::{self, HostError};
use crate::service::Service;
use bytes::Bytes;
use hyper::header::{self, HeaderValue};
use hyper::{Response, StatusCode, Uri};
use std::rc::Rc;
use std::time::Duration;

/// Why a request is answered by the gateway itself.
pub(crate) enum Refusal {
    /// The request can be understood in two ways; the connection ends.
    Ambiguous,
    /// Its head is none.
    Malformed(&'static str),
    /// Its head has too many fields.
    Fields(usize),
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
    /// The client's body stalled.
    Stalled,
    /// The endpoint cannot do what is asked for.
    CannotUpgrade(Rc<Service>),
}

impl Refusal {
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Ambiguous | Self::Malformed(_) | Self::Host(_) | Self::Body => StatusCode::BAD_REQUEST,
            Self::Fields(_) => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Stalled => StatusCode::REQUEST_TIMEOUT,
            Self::CannotUpgrade(_) => StatusCode::NOT_IMPLEMENTED,
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

pub(crate) fn redirect(host: &str, uri: &Uri) -> Refusal {
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    match HeaderValue::from_str(&format!("https://{}{path}", headers::without_port(host))) {
        Ok(location) => Refusal::Redirect(location),
        Err(_) => Refusal::Host(HostError::Invalid),
    }
}

pub(crate) fn own(status: StatusCode, text: impl Into<Bytes>) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::Own(Some(text.into())));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// Our own answer.
pub(crate) fn refuse(client: &Client, refusal: Refusal) -> Response<ResponseBody> {
    client.worker.shared.refused();
    let status = refusal.status();
    let again = matches!(refusal, Refusal::Empty(_) | Refusal::Unreachable(_));
    // What the client sent may not have been read to its end, or cannot be relied on.
    let ends = matches!(
        refusal,
        Refusal::Ambiguous
            | Refusal::Malformed(_)
            | Refusal::Host(_)
            | Refusal::Connect
            | Refusal::TooLarge(_)
            | Refusal::Body
            | Refusal::Stalled
    );
    let text = match &refusal {
        Refusal::Ambiguous => "the request's length can be read in two ways".to_owned(),
        Refusal::Malformed(why) => (*why).to_owned(),
        Refusal::Fields(limit) => format!("a request may have {limit} header fields here"),
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
        Refusal::Stalled => "the body did not come".to_owned(),
        Refusal::CannotUpgrade(service) => {
            format!("{} speaks HTTP/2, where a connection is not changed to another protocol", service.name)
        }
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
        | Refusal::Late(service)
        | Refusal::CannotUpgrade(service) => service.counters.answered(status, Duration::ZERO),
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
