//! Who makes a call: the token in its metadata, the certificate of its connection.
//!
//! Invariant: the name in a certificate counts only if the connection's authority was checked; see [`tls`](crate::tls).

use crate::guard::Credentials;
use crate::request::Queue;
use std::sync::Arc;
use tonic::Request;

/// Where clients put their token; the second is what etcd's JSON gateway takes.
const TOKEN_NAMES: [&str; 2] = ["token", "authorization"];

/// What a connection tells of whoever is at its other end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Peer {
    /// Which connection it is; 0 is none.
    pub(crate) connection: u64,
    /// The common name of the client's certificate, if it showed one.
    pub(crate) common_name: Option<Arc<str>>,
}

impl Queue {
    /// The queue as whoever sent `request` sees it.
    pub(crate) fn by<T>(&self, request: &Request<T>) -> Self {
        let metadata = request.metadata();
        let token = TOKEN_NAMES.iter().find_map(|name| metadata.get(*name)).map(|value| {
            // What is not text is no token of ours.
            value.to_str().unwrap_or_default().to_owned()
        });
        let common_name = request.extensions().get::<Peer>().and_then(|peer| peer.common_name.clone());
        if token.is_none() && common_name.is_none() {
            return self.clone();
        }
        self.with(Credentials { token, common_name })
    }
}
