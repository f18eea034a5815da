//! Other people's names: the cache, else the upstreams one after the other.
//!
//! Each question leaves by a socket of its own with a random id, and only an answer from whom was asked, with that id
//! and that question, is taken. Invariant: at most `IN_FLIGHT` questions are under way, and each ends in time.

use crate::{
    cache::{Cache, Key},
    message,
    metrics::{Metrics, count},
};
use hickory_proto::op::{Edns, Message, MessageType, ResponseCode};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    sync::Semaphore,
    time::timeout,
};
use tracing::debug;

/// Each is a socket and a task. A machine's containers have so many at a time only when the upstreams are dead.
const IN_FLIGHT: usize = 256;

/// For an answer of one upstream. The second one is asked while the client, which waits 5 s, still listens.
const PATIENCE: Duration = Duration::from_millis(1500);

/// Rounds through all upstreams: a packet may be lost.
const ROUNDS: usize = 2;

/// For all of it.
const DEADLINE: Duration = Duration::from_millis(4500);

#[derive(Debug)]
pub(crate) struct Forwarder {
    upstreams: Vec<SocketAddr>,
    cache: Mutex<Cache>,
    in_flight: Arc<Semaphore>,
    metrics: Arc<Metrics>,
}

impl Forwarder {
    pub(crate) fn new(upstreams: Vec<SocketAddr>, metrics: Arc<Metrics>) -> Self {
        Self { upstreams, cache: Mutex::default(), in_flight: Arc::new(Semaphore::new(IN_FLIGHT)), metrics }
    }

    /// The answer, if it is known already.
    pub(crate) fn cached(&self, question: &Message) -> Option<Message> {
        let known = self.cache().answer(&key(question)?, Instant::now())?;
        count(&self.metrics.cache_hits);
        Some(fitting(question, known))
    }

    /// The answer, or SERVFAIL.
    pub(crate) async fn ask(&self, question: &Message) -> Message {
        let failure = || message::answer(question, ResponseCode::ServFail);
        let Ok(_permit) = self.in_flight.try_acquire() else {
            count(&self.metrics.overloaded);
            return failure();
        };
        count(&self.metrics.forwarded);
        match timeout(DEADLINE, self.ask_all(question)).await.ok().flatten() {
            Some(answer) => {
                if let Some(key) = key(question) {
                    self.cache().take(key, &answer, Instant::now());
                }
                fitting(question, answer)
            }
            None => {
                count(&self.metrics.upstream_failures);
                failure()
            }
        }
    }

    async fn ask_all(&self, question: &Message) -> Option<Message> {
        for upstream in (0..ROUNDS).flat_map(|_| &self.upstreams) {
            match timeout(PATIENCE, ask(*upstream, question)).await {
                Ok(Ok(answer)) => match answer.metadata.response_code {
                    ResponseCode::NoError | ResponseCode::NXDomain => return Some(answer),
                    code => debug!(%upstream, %code, "an upstream could not answer"),
                },
                Ok(Err(error)) => debug!(%upstream, %error, "an upstream could not be asked"),
                Err(_) => debug!(%upstream, "an upstream did not answer"),
            }
        }
        None
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(question: &Message) -> Option<Key> {
    let query = question.queries.first()?;
    Some(Key {
        name: message::text(&query.name).to_ascii_lowercase(),
        kind: query.query_type,
        class: query.query_class,
        signed: is_signed(question),
    })
}

fn is_signed(question: &Message) -> bool {
    question.edns.as_ref().is_some_and(|edns: &Edns| edns.flags().dnssec_ok)
}

/// An upstream's answer as ours to this question.
fn fitting(question: &Message, answer: Message) -> Message {
    let mut own = message::answer(question, answer.metadata.response_code);
    own.metadata.truncation = answer.metadata.truncation;
    (own.answers, own.authorities, own.additionals) =
        (answer.answers, answer.authorities, answer.additionals);
    own
}

async fn ask(upstream: SocketAddr, question: &Message) -> io::Result<Message> {
    let query = question.queries.first().ok_or(io::ErrorKind::InvalidInput)?;
    let id = getrandom::u32().map_err(io::Error::other)? as u16;
    let asked = message::question(query, id, is_signed(question), question.metadata.checking_disabled);
    let bytes = asked.to_vec().map_err(io::Error::other)?;
    let own: IpAddr = match upstream {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((own, 0)).await?;
    socket.connect(upstream).await?;
    socket.send(&bytes).await?;
    let mut buffer = vec![0; 1 << 12];
    let answer = loop {
        let length = socket.recv(&mut buffer).await?;
        if let Some(answer) = answer_to(&asked, &buffer[..length]) {
            break answer;
        }
    };
    if !answer.metadata.truncation {
        return Ok(answer);
    }
    // Without an answer over TCP what there is goes to the client, which may try for itself.
    Ok(ask_in_full(upstream, &asked, &bytes).await.unwrap_or(answer))
}

async fn ask_in_full(upstream: SocketAddr, asked: &Message, bytes: &[u8]) -> io::Result<Message> {
    let mut connection = TcpStream::connect(upstream).await?;
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    connection.write_all(&[&length.to_be_bytes(), bytes].concat()).await?;
    let length = connection.read_u16().await?;
    let mut buffer = vec![0; length.into()];
    connection.read_exact(&mut buffer).await?;
    answer_to(asked, &buffer).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn answer_to(asked: &Message, bytes: &[u8]) -> Option<Message> {
    let answer = Message::from_vec(bytes).ok()?;
    let fits = answer.metadata.id == asked.metadata.id
        && answer.metadata.message_type == MessageType::Response
        && answer.queries == asked.queries;
    fits.then_some(answer)
}
