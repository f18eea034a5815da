//! Requests that nobody's client sends: mutations of good ones, byte by byte.
//!
//! Promises: each is answered with a status or, if it is no HTTP, the connection is closed; a refusal is JSON with its
//! status in it and changes nothing; and the server answers the next client.

use crate::{
    memory::{IDS, Server, serve},
    raw::{Socket, ask},
};
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

/// Requests in a usual run; `API_PROOF=20` makes it twenty times as many.
const REQUESTS: u64 = 3000;
/// More than any answer takes. What is not an ended request is waited for by the server, so the client ends it.
const PATIENCE: Duration = Duration::from_secs(20);

/// Splitmix64.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % sides as u64).expect("it was a usize")
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.roll(from.len())]
    }

    fn mutate(&mut self, data: &mut Vec<u8>, others: &[Vec<u8>]) {
        let at = self.roll(data.len() + 1);
        let to = (at + 1 + self.roll(16)).min(data.len());
        match self.roll(6) {
            0 if at < data.len() => data[at] ^= 1 << self.roll(8),
            1 if at < data.len() => data[at] = *self.pick(b"\0\x7f\xff\"/%{}[],:0-e"),
            2 if at < to => drop(data.drain(at..to)),
            3 if at < to => {
                let again = data[at..to].to_vec();
                data.splice(at..at, again);
            }
            4 => {
                let other = self.pick(others);
                let from = self.roll(other.len() + 1);
                data.splice(at.., other[from..].iter().copied());
            }
            _ => data.insert(at, u8::try_from(self.roll(256)).expect("below 256")),
        }
    }
}

/// Good requests: method and path, and body.
fn corpus() -> Vec<(Vec<u8>, Vec<u8>)> {
    let unit = r#"{"name":"a.service","desiredState":"launched","options":[{"section":"Service","name":"ExecStart","value":"/bin/true"}]}"#;
    let maintenance = format!("PUT /v1/machines/{}/maintenance", IDS[0]);
    let shown = [
        ("GET /v1/machines", ""),
        ("GET /v1/units", ""),
        (
            "POST /v1/units",
            r#"[{"name":"a.service","text":"[Service]\nExecStart=/bin/true\n","desired":"launched","replace":true}]"#,
        ),
        ("POST /v1/units/destroy", r#"{"units":["a.service"]}"#),
        ("GET /v1/units/a.service/why", ""),
        (maintenance.as_str(), r#"{"state":"draining","reason":"new disk"}"#),
        ("POST /v1/moves", r#"{"moves":[]}"#),
        ("GET /v1/events?unit=a.service&watch=false", ""),
        ("POST /v1/rollouts", r#"{"name":"a.service","text":"[Service]\nExecStart=/bin/true\n"}"#),
        ("POST /v1/rollouts/a.service", r#"{"command":"pause"}"#),
        ("GET /fleet/v1/machines?nextPageToken=abc", ""),
        ("GET /fleet/v1/units/a%401.service?alt=json", ""),
        ("PUT /fleet/v1/units/a.service", unit),
        ("DELETE /fleet/v1/units/a.service", ""),
        (
            "PATCH /fleet/v1/machines",
            r#"[{"op":"add","path":"/0123456789abcdef0123456789abcdef/metadata/region","value":"eu"}]"#,
        ),
        ("GET /fleet/v1/state?unitName=a.service", ""),
    ];
    shown.iter().map(|(line, body)| (line.as_bytes().to_vec(), body.as_bytes().to_vec())).collect()
}

/// What came back until the server closed the connection.
async fn exchange(socket: &Socket, request: &[u8]) -> Vec<u8> {
    let Socket::Unix(path) = socket else { panic!("the unix socket is asked") };
    let mut stream = UnixStream::connect(path).await.expect("it listens");
    // It may close while it is still being talked to.
    let _ = stream.write_all(request).await;
    let _ = stream.shutdown().await;
    let mut answer = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    assert!(
        read.is_ok(),
        "no end of {:?} to {:?}",
        answer.escape_ascii().to_string(),
        request.escape_ascii().to_string()
    );
    answer
}

/// The status, if it is an answer; a refusal must be told as every other is.
fn status(answer: &[u8], request: &[u8]) -> Option<u16> {
    let text = String::from_utf8_lossy(answer);
    let status: u16 = text.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().expect("a status");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head ends");
    let shown = || format!("{:?} to {:?}", text, request.escape_ascii().to_string());
    // What is no HTTP is refused by the library below, without a word.
    if status >= 400 && !body.is_empty() {
        assert!(head.to_lowercase().contains("application/json"), "{}", shown());
        let error: serde_json::Value =
            serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {}", shown()));
        assert_eq!(error["error"]["code"], status, "{}", shown());
        // fleet's own for a method that a path does not know says nothing.
        let said = !error["error"]["message"].as_str().unwrap_or_default().is_empty();
        assert!(said || status == 405, "{}", shown());
    }
    assert!((200..=503).contains(&status) && status != 500, "{}", shown());
    Some(status)
}

async fn one(server: &Server, seed: u64, corpus: &[(Vec<u8>, Vec<u8>)]) -> Option<u16> {
    let mut dice = Dice(seed);
    let (mut line, mut body) = dice.pick(corpus).clone();
    let (lines, bodies): (Vec<_>, Vec<_>) = corpus.iter().cloned().unzip();
    for _ in 0..=dice.roll(4) {
        // Bodies have more to get wrong.
        if dice.roll(3) == 0 {
            dice.mutate(&mut line, &lines);
        } else {
            dice.mutate(&mut body, &bodies);
        }
    }
    let length = body.len();
    let head = format!(
        " HTTP/1.1\r\nHost: fleet\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    );
    let request = [line, head.into_bytes(), body].concat();
    let before = server.memory.writes();
    let status = status(&exchange(&server.sockets[1], &request).await, &request);
    if status.is_none_or(|status| status >= 400) {
        assert_eq!(server.memory.writes(), before, "seed {seed}: refused, and yet written");
    }
    status
}

#[tokio::test]
async fn mutated_requests_are_answered_or_refused_and_harm_nothing() {
    let server = serve().await;
    let corpus = corpus();
    let times: u64 = std::env::var("API_PROOF").map_or(1, |times| times.parse().expect("a number"));
    let (mut done, mut refused, mut closed) = (0, 0, 0);
    for seed in 0..REQUESTS * times {
        match one(&server, seed, &corpus).await {
            Some(status) if status < 400 => done += 1,
            Some(_) => refused += 1,
            None => closed += 1,
        }
    }
    println!("{done} done, {refused} refused, {closed} closed");
    assert!(done > 100 && refused > 100, "the mutations are all alike: {done} done, {refused} refused");
    let answer = ask(&server.sockets[0], "GET", "/v1/machines", &[], "").await;
    assert_eq!(answer.status, 200);
}
