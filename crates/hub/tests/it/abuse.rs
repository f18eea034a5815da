//! Clients that do harm, by mistake or on purpose: who never reads, who opens ten thousand streams, who talks nonsense, who
//! says nothing.
//!
//! The hub is a process of its own, so that its memory can be seen. Each test checks that it stays within a bound
//! that what it would cost to oblige the client is far beyond, and that another client is served meanwhile.

use crate::child::ChildHub;
use crate::dice::Dice;
use crate::raw::{channel, open};
use crate::{DEADLINE, soon};
use etcd_client::proto as pb;
use etcd_client::{Client, WatchOptions};
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tonic::Streaming;
use tonic::transport::Channel;

const MIB: u64 = 1 << 20;

/// How long another client may wait for an answer, on the slowest of machines.
const ANSWER: Duration = Duration::from_secs(10);

struct Victim {
    hub: ChildHub,
    other: Client,
    /// What it occupied before.
    memory: u64,
    _dir: TempDir,
}

impl Victim {
    async fn start() -> Self {
        Self::start_as(ChildHub::start).await
    }

    async fn start_as(start: impl FnOnce(&Path) -> ChildHub) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let hub = start(dir.path());
        let mut other = Client::connect([hub.address.as_str()], None).await.unwrap();
        other.put("other", "0", None).await.unwrap();
        let memory = hub.memory();
        Self { hub, other, memory, _dir: dir }
    }

    /// What it occupies more than before.
    fn grown(&self) -> u64 {
        self.hub.memory().saturating_sub(self.memory)
    }

    /// Others are served, and it has not grown by more than `most`.
    async fn check(&mut self, most: u64, when: &str) {
        let served = async {
            self.other.put("other", "1", None).await.unwrap();
            self.other.get("other", None).await.unwrap()
        };
        let served = tokio::time::timeout(ANSWER, served).await;
        assert_eq!(served.unwrap_or_else(|_| panic!("{when}: others wait")).count(), 1);
        let grown = self.grown();
        assert!(grown <= most, "{when}: it has grown by {} MiB", grown / MIB);
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(&self.hub.address).await.unwrap()
    }
}

type Held = (mpsc::Sender<pb::PbWatchRequest>, Streaming<pb::PbWatchResponse>);

/// A watch of everything that nobody reads.
async fn unread(channel: &Channel, start: i64) -> Held {
    let (sender, requests) = mpsc::channel(1);
    let mut union = pb::PbWatchRequestUnion::CreateRequest(Default::default());
    if let pb::PbWatchRequestUnion::CreateRequest(create) = &mut union {
        (create.key, create.range_end, create.prev_kv) = (vec![0], vec![0], true);
        create.start_revision = start;
    }
    sender.send(pb::PbWatchRequest { request_union: Some(union) }).await.unwrap();
    (sender, soon(open(channel, "/etcdserverpb.Watch/Watch", requests)).await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn watchers_that_never_read_occupy_little() {
    const VALUE: usize = 200 << 10;
    const WRITES: i64 = 100;
    let mut victim = Victim::start().await;
    for _ in 0..WRITES {
        victim.other.put("large", vec![7; VALUE], None).await.unwrap();
    }
    // Each is owed all of the values, and those before them: 40 MiB. Most read from the past, some from now on.
    let narrow = Channel::from_shared(format!("http://{}", victim.hub.address)).unwrap();
    let narrow = narrow.initial_stream_window_size(64 << 10).initial_connection_window_size(64 << 10);
    let mut held = Vec::new();
    for number in 0..200 {
        if number % 50 == 0 {
            held.push((narrow.connect().await.unwrap(), Vec::new()));
        }
        let (channel, streams) = held.last_mut().unwrap();
        let stream = unread(channel, if number % 4 == 0 { 0 } else { 2 }).await;
        streams.push(stream);
        victim.check(500 * MIB, &format!("{number} watchers do not read")).await;
    }
    let options = WatchOptions::new().with_start_revision(WRITES);
    let mut reader = victim.other.watch("large", Some(options)).await.unwrap();
    for _ in 0..WRITES {
        tokio::time::timeout(ANSWER, victim.other.put("large", vec![8; VALUE], None)).await.unwrap().unwrap();
        victim.check(500 * MIB, "writes go on").await;
    }
    let mut last = 0;
    while last < 2 * WRITES {
        let answer = soon(reader.message()).await.unwrap().unwrap();
        last = answer.events().last().map_or(last, |event| event.kv().unwrap().mod_revision());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_streams_of_one_client() {
    let mut victim = Victim::start().await;
    let mut first = 0;
    for round in 0..2 {
        let channel = channel(&victim.hub.address).await;
        let mut held = Vec::new();
        for number in 0..10_000 {
            held.push(unread(&channel, 1_000_000).await);
            if number % 1000 == 0 {
                victim.check(500 * MIB, &format!("{number} streams")).await;
            }
        }
        victim.check(500 * MIB, "all streams").await;
        let grown = victim.grown();
        println!("10,000 streams occupy {} MiB", grown / MIB);
        match round {
            0 => first = grown,
            // What the first ones had is used again.
            _ => {
                assert!(grown < first + first / 2 + 16 * MIB, "{} MiB, then {} MiB", first / MIB, grown / MIB)
            }
        }
    }
}

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SETTINGS: u8 = 4;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// The headers of a gRPC call, without Huffman codes and tables.
fn call(path: &str) -> Vec<u8> {
    let mut block = vec![0x83, 0x86]; // POST, http
    let mut literal = |name: &str, value: &str| {
        block.push(0);
        for text in [name, value] {
            block.push(text.len() as u8);
            block.extend(text.as_bytes());
        }
    };
    literal(":path", path);
    literal(":authority", "hub");
    literal("content-type", "application/grpc");
    literal("te", "trailers");
    block
}

/// What a client of HTTP/2 sends first, and then `frames`.
fn http2(frames: &[Vec<u8>]) -> Vec<u8> {
    [PREFACE, &frame(SETTINGS, 0, 0, &[]), &frames.concat()].concat()
}

/// Sends all of it, if it is let, and waits for the end; false if there is none.
async fn ends(mut connection: TcpStream, bytes: &[u8]) -> bool {
    let (mut read, mut write) = connection.split();
    let sending = async {
        let _ = write.write_all(bytes).await; // it may be hung up upon
    };
    let reading = async {
        let mut buffer = vec![0; 64 << 10];
        while matches!(read.read(&mut buffer).await, Ok(read) if read > 0) {}
    };
    tokio::time::timeout(DEADLINE, async { tokio::join!(sending, reading) }).await.is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_ends_its_connection_and_nothing_else() {
    let mut victim = Victim::start().await;
    let mut dice = Dice::seeded(5);
    let mut noise: Vec<u8> = (0..100_000).map(|_| dice.roll(256) as u8).collect();
    noise[0] = 0; // no letter, with which HTTP could begin
    let endless =
        vec![frame(HEADERS, 0, 1, &call("/etcdserverpb.KV/Put"))]
            .into_iter()
            .chain((0..2000).map(|_| {
                frame(CONTINUATION, 0, 1, &[&[0, 1, b'a', 127, 0x81, 0x7f], &[b'x'; 256][..]].concat())
            }))
            .collect::<Vec<_>>();
    let opened = frame(HEADERS, END_HEADERS, 1, &call("/etcdserverpb.KV/Put"));
    let nonsense = [
        ("noise", noise.clone()),
        ("noise after the preface", [PREFACE, &noise].concat()),
        ("noise after a request", http2(&[opened.clone(), noise.clone()])),
        ("a frame of 16 MiB", http2(&[vec![0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1], vec![0; 1 << 20]])),
        ("data of no stream", http2(&[frame(0, 0, 0, &[1, 2, 3])])),
        ("headers without end", http2(&endless)),
        ("a request line without end", [b"GET /".as_slice(), &vec![b'a'; 4 << 20]].concat()),
        (
            "HTTP headers without end",
            [b"GET / HTTP/1.1\r\n".as_slice(), &b"a: b\r\n".repeat(500_000)].concat(),
        ),
        ("another protocol", b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n\r\n".to_vec()),
        ("a TLS hello", [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3], &noise[..512]].concat()),
    ];
    for (what, bytes) in nonsense {
        let mut connections = tokio::task::JoinSet::new();
        for _ in 0..20 {
            let (connection, bytes) = (victim.connect().await, bytes.clone());
            connections.spawn(async move { ends(connection, &bytes).await });
        }
        victim.check(200 * MIB, what).await;
        assert!(connections.join_all().await.into_iter().all(|ended| ended), "{what}: not ended");
        victim.check(200 * MIB, what).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_announced_is_not_reserved() {
    let mut victim = Victim::start().await;
    // Each of these announces 4 MiB, or 4 GiB, sends nothing of it, and waits.
    let mut held = Vec::new();
    for announced in [4 << 20, u32::MAX] {
        for _ in 0..10 {
            let mut connection = victim.connect().await;
            let mut bytes = http2(&[]);
            for stream in (1..200).step_by(2) {
                bytes.extend(frame(HEADERS, END_HEADERS, stream, &call("/etcdserverpb.KV/Put")));
                bytes.extend(frame(0, 0, stream, &[&[0][..], &announced.to_be_bytes()].concat()));
            }
            connection.write_all(&bytes).await.unwrap();
            held.push(connection);
        }
        victim.check(300 * MIB, &format!("{announced} bytes are announced")).await;
    }
    // A message that is really so long is refused as such.
    let large = victim.other.put("large", vec![0; 5 << 20], None).await.unwrap_err();
    assert!(matches!(large, etcd_client::Error::GRpcStatus(_)), "{large:?}");
    victim.check(300 * MIB, "a long message was sent").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_are_opened_and_reset() {
    let mut victim = Victim::start().await;
    let mut bytes = http2(&[]);
    for stream in (1..20_000).step_by(2) {
        bytes.extend(frame(HEADERS, END_HEADERS, stream, &call("/etcdserverpb.Watch/Watch")));
        bytes.extend(frame(3, 0, stream, &8u32.to_be_bytes())); // CANCEL
    }
    let mut held = Vec::new();
    for _ in 0..10 {
        let mut connection = victim.connect().await;
        let _ = tokio::time::timeout(ANSWER, connection.write_all(&bytes)).await; // it may be hung up upon
        held.push(connection);
        victim.check(200 * MIB, "streams are reset").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_says_nothing_is_hung_up_upon() {
    let mut victim = Victim::start().await;
    let mut silent = tokio::task::JoinSet::new();
    let beginnings: [&[u8]; 4] = [b"", b"G", b"PRI * HTTP/2.0\r\n", b"GET /health HTTP/1"];
    for beginning in beginnings.iter().cycle().take(400) {
        let mut connection = victim.connect().await;
        connection.write_all(beginning).await.unwrap();
        silent.spawn(async move { ends(connection, &[]).await });
    }
    victim.check(100 * MIB, "400 connections say nothing").await;
    assert!(silent.join_all().await.into_iter().all(|ended| ended), "not hung up upon");
    victim.check(100 * MIB, "400 connections have said nothing").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_connections_than_files() {
    let mut victim = Victim::start_as(|dir| ChildHub::start_with_files(200, dir)).await;
    let mut held = Vec::new();
    for _ in 0..400 {
        let mut connection = victim.connect().await;
        let _ = connection.write_all(&http2(&[])).await; // it may be hung up upon
        held.push(connection);
    }
    // The log has files for its next segments, whatever there is to write.
    for _ in 0..60 {
        victim.other.put("large", vec![7; 1 << 20], None).await.unwrap();
    }
    victim.check(300 * MIB, "all connections are taken").await;
    drop(held);
    crate::eventually("there are places again", async || {
        match Client::connect([victim.hub.address.as_str()], None).await {
            Ok(mut client) => client.status().await.is_ok(),
            Err(_) => false,
        }
    })
    .await;
}
