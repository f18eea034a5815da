//! The same requests to the hub and to a real etcd (Debian's 3.4): every answer must be the same, field by field.
//!
//! Here are long walks on fresh servers, each with a printed seed; below it short sequences that share servers and are
//! shrunk ([`sequences`]), and leases that end ([`expiry`]). Without etcd these tests fail: what the hub promises is to
//! be it.

/// Leases that end.
mod expiry;
/// Random requests.
pub(crate) mod generate;
/// Short sequences.
mod sequences;
/// Watches of a sequence.
mod watches;

use crate::dice::Dice;
use crate::raw::{call, channel, only_revision};
use crate::{DEADLINE, Fixture, effort};
use etcd_client::proto as pb;
use etcd_client::{Client, ConnectOptions, TlsOptions, WatchOptions};
use generate::{Generator, Scope};
use std::fmt::Debug;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tonic::Status;
use tonic::transport::Channel;

/// A real etcd with one member; killed when dropped.
pub(crate) struct Etcd {
    child: Child,
    pub(crate) address: String,
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Etcd {
    pub(crate) async fn start(dir: &Path) -> Self {
        Self::start_with(dir, &[]).await
    }

    pub(crate) async fn start_with(dir: &Path, flags: &[&str]) -> Self {
        Self::start_as("http", dir, flags, None).await
    }

    /// With client certificates; `probe` is the bearer of one.
    pub(crate) async fn start_tls(dir: &Path, cert: &Path, key: &Path, ca: &Path, probe: TlsOptions) -> Self {
        let flags = [("--cert-file", cert), ("--key-file", key), ("--trusted-ca-file", ca)];
        let mut flags: Vec<String> =
            flags.iter().map(|(flag, path)| format!("{flag}={}", path.display())).collect();
        flags.extend(["--client-cert-auth".to_owned(), "--bcrypt-cost=4".to_owned()]);
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let probe = ConnectOptions::new().with_tls(probe);
        Self::start_as("https", dir, &flags, Some(probe)).await
    }

    async fn start_as(scheme: &str, dir: &Path, flags: &[&str], probe: Option<ConnectOptions>) -> Self {
        let start = Instant::now();
        // A free port may be somebody else's by the time that etcd listens on it: then it ends, and other ports are tried.
        loop {
            let address = format!("127.0.0.1:{}", free_port());
            let (client, peer) =
                (format!("{scheme}://{address}"), format!("http://127.0.0.1:{}", free_port()));
            let cluster = format!("default={peer}");
            let child = Command::new("etcd")
                .arg("--data-dir")
                .arg(dir)
                .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
                .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
                .args(["--initial-cluster", &cluster, "--log-level", "error"])
                .args(flags)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("etcd runs (Debian: apt-get install etcd-server)");
            let mut etcd = Self { child, address };
            while etcd.child.try_wait().unwrap().is_none() {
                if Self::serves(&client, probe.clone()).await {
                    return etcd;
                }
                assert!(start.elapsed() < DEADLINE, "etcd does not come up");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            assert!(start.elapsed() < DEADLINE, "etcd ends again and again while starting");
        }
    }

    async fn serves(url: &str, probe: Option<ConnectOptions>) -> bool {
        let Ok(mut client) = Client::connect([url], probe).await else { return false };
        let get = tokio::time::timeout(Duration::from_secs(2), client.get("a", None)).await;
        // With users in force it refuses who has no name: an answer too.
        let refused = |status: &Status| status.code() == tonic::Code::InvalidArgument;
        match get {
            Ok(Err(etcd_client::Error::GRpcStatus(status))) => refused(&status),
            answer => matches!(answer, Ok(Ok(_))),
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What both answered, unless it is not the same.
pub(crate) fn agree<T: PartialEq + Debug>(
    what: &dyn Debug,
    hub: Result<T, Status>,
    etcd: Result<T, Status>,
) -> Result<Option<T>, String> {
    let plain =
        |result: Result<T, Status>| result.map_err(|status| (status.code(), status.message().to_owned()));
    let (hub, etcd) = (plain(hub), plain(etcd));
    if hub == etcd {
        return Ok(hub.ok());
    }
    Err(format!("the hub and etcd differ on {what:?}\n hub: {hub:?}\netcd: {etcd:?}"))
}

/// What both answered; panics unless it is the same.
pub(crate) fn same<T: PartialEq + Debug>(
    what: &dyn Debug,
    hub: Result<T, Status>,
    etcd: Result<T, Status>,
) -> Option<T> {
    agree(what, hub, etcd).unwrap_or_else(|difference| panic!("{difference}"))
}

/// The hub and the etcd.
struct Both {
    hub: Channel,
    etcd: Channel,
}

macro_rules! ask {
    ($both:expr, $path:literal, $request:expr, $answer:ty) => {{
        let request = $request;
        let mut hub: Result<$answer, Status> = call(&$both.hub, $path, request.clone()).await;
        let mut etcd: Result<$answer, Status> = call(&$both.etcd, $path, request.clone()).await;
        for response in [&mut hub, &mut etcd].into_iter().flatten() {
            only_revision(&mut response.header);
        }
        same(&request, hub, etcd)
    }};
}

impl Both {
    async fn step(&self, dice: &mut Dice, current: &mut i64) {
        let kind = dice.roll(24);
        let mut make = Generator { dice, scope: &Scope::default(), current: *current };
        let header = match kind {
            0..8 => {
                let answer = ask!(self, "/etcdserverpb.KV/Put", make.put(), pb::PbPutResponse);
                answer.and_then(|answer| answer.header)
            }
            8..12 => {
                let answer = ask!(self, "/etcdserverpb.KV/Range", make.range(), pb::PbRangeResponse);
                answer.and_then(|answer| answer.header)
            }
            12 | 13 => {
                let answer = ask!(self, "/etcdserverpb.KV/DeleteRange", make.delete(), pb::PbDeleteResponse);
                answer.and_then(|answer| answer.header)
            }
            14..19 => {
                let answer = ask!(self, "/etcdserverpb.KV/Txn", make.txn(2), pb::PbTxnResponse);
                answer.and_then(|answer| answer.header)
            }
            19 => {
                let ttl =
                    if make.dice.one_in(10) { 9_000_000_001 } else { 1000 + make.dice.roll(1000) as i64 };
                let grant = pb::PbLeaseGrantRequest { ttl, id: make.some_lease() };
                let answer = ask!(self, "/etcdserverpb.Lease/LeaseGrant", grant, pb::PbLeaseGrantResponse);
                answer.and_then(|answer| answer.header)
            }
            20 if make.dice.one_in(2) => {
                let revoke = pb::PbLeaseRevokeRequest { id: make.some_lease() };
                let answer = ask!(self, "/etcdserverpb.Lease/LeaseRevoke", revoke, pb::PbLeaseRevokeResponse);
                answer.and_then(|answer| answer.header)
            }
            21 => self.leases(make.some_lease()).await,
            22 if make.dice.one_in(16) => {
                let compact = pb::PbCompactionRequest {
                    revision: *current + 2 - make.dice.roll(8) as i64,
                    physical: false,
                };
                let answer = ask!(self, "/etcdserverpb.KV/Compact", compact, pb::PbCompactionResponse);
                answer.and_then(|answer| answer.header)
            }
            _ => None,
        };
        if let Some(header) = header {
            *current = header.revision;
        }
    }

    async fn leases(&self, id: i64) -> Option<pb::PbResponseHeader> {
        let request = pb::PbLeaseTimeToLiveRequest { id, keys: true };
        let path = "/etcdserverpb.Lease/LeaseTimeToLive";
        let hub: Result<pb::PbLeaseTimeToLiveResponse, Status> = call(&self.hub, path, request).await;
        let etcd: Result<pb::PbLeaseTimeToLiveResponse, Status> = call(&self.etcd, path, request).await;
        let (mut hub, mut etcd) = (hub.unwrap(), etcd.unwrap());
        assert!((hub.ttl - etcd.ttl).abs() <= 2, "{hub:?} {etcd:?}"); // time passes
        for answer in [&mut hub, &mut etcd] {
            answer.ttl = 0;
            only_revision(&mut answer.header);
            answer.keys.sort(); // etcd keeps them in a map
        }
        same(&request, Ok(hub), Ok(etcd)).and_then(|answer| answer.header)
    }
}

/// All events from `revision` to `last`, a revision per entry.
async fn history(address: &str, revision: i64, last: i64) -> Vec<Vec<pb::PbEvent>> {
    let mut client = Client::connect([address], None).await.unwrap();
    let options = WatchOptions::new().with_all_keys().with_prev_key().with_start_revision(revision);
    let mut stream = client.watch("", Some(options)).await.unwrap();
    let mut events: Vec<pb::PbEvent> = Vec::new();
    let main = |event: &pb::PbEvent| event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
    while events.last().map_or(0, main) < last {
        let answer = crate::soon(stream.message()).await.unwrap().unwrap();
        assert!(!answer.canceled(), "{answer:?}");
        events.extend(answer.events().iter().map(|event| event.0.clone()));
    }
    events.chunk_by(|a, b| main(a) == main(b)).map(<[_]>::to_vec).collect()
}

async fn compare_run(seed: u64, etcd: &Etcd, steps: usize) {
    println!("seed {seed}");
    let fixture = Fixture::start().await;
    let both =
        Both { hub: channel(&fixture.hub.address().to_string()).await, etcd: channel(&etcd.address).await };
    let mut dice = Dice::seeded(seed);
    let mut current = 1;
    for _ in 0..steps {
        both.step(&mut dice, &mut current).await;
    }
    // One more write, so that there is an end to wait for; then everything since the last compaction.
    let put = pb::PbPutRequest { key: b"end".to_vec(), ..Default::default() };
    let end = ask!(both, "/etcdserverpb.KV/Put", put, pb::PbPutResponse);
    let last = end.unwrap().header.unwrap().revision;
    let compacted = first_readable(&both, last).await;
    let hub = history(&fixture.hub.address().to_string(), compacted + 1, last).await;
    let real = history(&etcd.address, compacted + 1, last).await;
    for (hub, etcd) in hub.iter().zip(&real) {
        assert_eq!(hub, etcd, "the hub (left) and etcd (right) tell watchers different things");
    }
    assert_eq!(hub.len(), real.len());
    println!("{last} revisions, {} of them watched", real.len());
}

/// The compacted revision, found by reading.
async fn first_readable(both: &Both, last: i64) -> i64 {
    for revision in 1..=last {
        let range = pb::PbRangeRequest { key: b"a".to_vec(), revision, ..Default::default() };
        let answer = ask!(both, "/etcdserverpb.KV/Range", range, pb::PbRangeResponse);
        if answer.is_some() {
            return revision;
        }
    }
    last
}

#[tokio::test(flavor = "multi_thread")]
async fn random_requests_have_the_same_answers() {
    for seed in 1..=2 * effort() as u64 {
        let dir = tempfile::tempdir().unwrap();
        let etcd = Etcd::start(dir.path()).await;
        compare_run(seed, &etcd, 1000).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_of_one_second_has_two() {
    let dir = tempfile::tempdir().unwrap();
    let etcd = Etcd::start(dir.path()).await;
    let fixture = Fixture::start().await;
    let both =
        Both { hub: channel(&fixture.hub.address().to_string()).await, etcd: channel(&etcd.address).await };
    for ttl in [1, 0, -1] {
        let grant = pb::PbLeaseGrantRequest { ttl, id: 5 + ttl };
        let answer = ask!(both, "/etcdserverpb.Lease/LeaseGrant", grant, pb::PbLeaseGrantResponse);
        assert_eq!(answer.unwrap().ttl, 2);
    }
}
