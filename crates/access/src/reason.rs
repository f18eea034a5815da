//! Why there is no connection, or why the hub says no, and what helps.
//!
//! A TLS failure reaches a client as an error inside an error inside an error; what rustls said is looked for in all of
//! them. Invariant: where nothing is known that helps, the text is that of the innermost cause and nothing is made up.

use crate::Access;
use etcd_client::Error;
use std::error;
use std::io;
use tokio_rustls::rustls::{self, CertificateError, InvalidMessage};

/// Why a call of a client brought no answer.
pub fn reason(error: &Error, access: &Access) -> String {
    let mut cause: &(dyn error::Error + 'static) = match error {
        Error::TransportError(error) => error,
        Error::GRpcStatus(status) => match error::Error::source(status) {
            Some(source) => source,
            None => return status.message().to_owned(),
        },
        other => return other.to_string(),
    };
    loop {
        let text = cause.to_string();
        // HTTP/2 keeps the text of an alert that comes after the handshake, and nothing else.
        let advice = match text.rsplit_once(ALERT) {
            Some((_, alert)) => alert_advice(alert, access),
            None => tls_failure(cause).and_then(|failure| advice(failure, access)),
        };
        if let Some(advice) = advice {
            return format!("{text}: {advice}");
        }
        match cause.source() {
            Some(source) => cause = source,
            None => break,
        }
    }
    let text = cause.to_string();
    let ended = text.contains("connection closed")
        || cause.downcast_ref::<io::Error>().is_some_and(|error| {
            use io::ErrorKind as Kind;
            matches!(error.kind(), Kind::ConnectionReset | Kind::BrokenPipe | Kind::UnexpectedEof)
        });
    if access.secure() && ended && access.identity.is_none() {
        return format!("{text}: {WANTS_CERTIFICATE}");
    }
    // What HTTP/2 makes of the alert that TLS answers plain text with.
    if !access.secure() && (text.contains("frame") || ended) {
        return format!("{text}: if it speaks TLS, say https:// instead of http://");
    }
    text
}

const WANTS_CERTIFICATE: &str = "it may ask for a client certificate: name one (`cert-file` and `key-file` in [hub], or --cert and --key)";

/// What helps when a server refuses in these words of etcd's.
pub fn remedy(refusal: &str, access: &Access) -> Option<&'static str> {
    match refusal {
        "etcdserver: user name is empty" if access.login.is_none() => {
            Some("it has users: say which (`user` and `password-file` in [hub], or --user)")
        }
        "etcdserver: authentication failed, invalid user ID or password" => {
            Some("check `user` and `password-file` in [hub], or --user")
        }
        "etcdserver: permission denied" => Some("the user's roles do not allow it"),
        _ => None,
    }
}

fn tls_failure<'a>(cause: &'a (dyn error::Error + 'static)) -> Option<&'a rustls::Error> {
    let inside = |error: &'a io::Error| error.get_ref()?.downcast_ref::<rustls::Error>();
    cause.downcast_ref::<rustls::Error>().or_else(|| inside(cause.downcast_ref::<io::Error>()?))
}

/// How rustls begins to speak of what the other side said.
const ALERT: &str = "received fatal alert: ";

fn alert_advice(alert: &str, access: &Access) -> Option<String> {
    let ours = match &access.identity {
        Some((cert, _)) => format!("our certificate {}", cert.display()),
        None => "our certificate".to_owned(),
    };
    Some(match alert {
        // Before TLS 1.3 there was no word for a certificate that is missing.
        "CertificateRequired" | "BadCertificate" | "HandshakeFailure" if access.identity.is_none() => {
            "it wants a client certificate: name one (`cert-file` and `key-file` in [hub], or --cert and --key)"
                .to_owned()
        }
        "CertificateExpired" => format!("{ours} expired"),
        "UnknownCA" | "BadCertificate" | "DecryptError" | "CertificateUnknown" => {
            format!("it does not believe {ours}: have it signed by an authority that it trusts")
        }
        _ => return None,
    })
}

fn advice(failure: &rustls::Error, access: &Access) -> Option<String> {
    use CertificateError as C;
    let authorities = || match &access.ca {
        Some(ca) => format!("{} names", ca.display()),
        None => "this system trusts".to_owned(),
    };
    Some(match failure {
        rustls::Error::InvalidCertificate(C::UnknownIssuer | C::BadSignature) => format!(
            "its certificate is signed by no authority that {}: name the right one (`ca-file` in [hub], or --cacert)",
            authorities()
        ),
        rustls::Error::InvalidCertificate(C::NotValidForName | C::NotValidForNameContext { .. }) => {
            "its certificate does not name the address that it is reached by: have one made that does \
             (subjectAltName), or use an endpoint that it names"
                .to_owned()
        }
        rustls::Error::InvalidCertificate(C::Expired | C::ExpiredContext { .. }) => {
            "the hub's certificate has to be renewed".to_owned()
        }
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "it does not speak TLS: say http:// instead of https://".to_owned()
        }
        _ => return None,
    })
}
