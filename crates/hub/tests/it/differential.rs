//! The same requests to the hub and to a real etcd (Debian's 3.4): every answer must be the same, field by field.
//!
//! Random requests with a printed seed, raw protobuf so that malformed ones are among them. Without etcd these tests
//! fail: what the hub promises is to be it.

use crate::raw::{call, channel, only_revision};
use crate::{DEADLINE, Fixture};
use etcd_client::proto as pb;
use etcd_client::{Client, ConnectOptions, TlsOptions, WatchOptions};
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
        let address = format!("127.0.0.1:{}", free_port());
        let (client, peer) = (format!("{scheme}://{address}"), format!("http://127.0.0.1:{}", free_port()));
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
        let etcd = Self { child, address };
        let start = Instant::now();
        while !Self::serves(&client, probe.clone()).await {
            assert!(start.elapsed() < DEADLINE, "etcd does not come up");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        etcd
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

/// Splitmix64: small, and the same everywhere.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.roll(n) == 0
    }

    pub(crate) fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.roll(of.len() as u64) as usize].clone()
    }

    /// Few keys, so that requests meet. Fewer than twelve: Go sorts as many stably, so that ties can be compared.
    fn key(&mut self) -> Vec<u8> {
        let key = if self.one_in(60) { "" } else { self.pick(&["a", "ab", "abc", "b", "ba", "c", "d"]) };
        key.into()
    }

    fn range_end(&mut self) -> Vec<u8> {
        self.pick(&["", "", "", "\0", "b", "c", "ac", "z", "a"]).into()
    }

    fn revision(&mut self, current: i64) -> i64 {
        if self.one_in(3) { current + 3 - self.roll(12) as i64 } else { 0 }
    }

    fn lease(&mut self) -> i64 {
        if self.one_in(2) { 0 } else { 1 + self.roll(4) as i64 }
    }

    fn put(&mut self) -> pb::PbPutRequest {
        pb::PbPutRequest {
            key: self.key(),
            value: self.pick(&["", "1", "2", "3", "4"]).into(),
            lease: self.lease(),
            prev_kv: self.one_in(2),
            ignore_value: self.one_in(10),
            ignore_lease: self.one_in(10),
        }
    }

    fn range(&mut self, current: i64) -> pb::PbRangeRequest {
        let mut filter = || if self.one_in(6) { current - self.roll(8) as i64 } else { 0 };
        let (min_mod_revision, max_mod_revision) = (filter(), filter());
        let (min_create_revision, max_create_revision) = (filter(), filter());
        pb::PbRangeRequest {
            key: self.key(),
            range_end: self.range_end(),
            limit: self.pick(&[0, 0, 1, 2, 3, -1]),
            revision: self.revision(current),
            sort_order: self.pick(&[0, 0, 1, 2, 2]), // 3.4 does not refuse others yet, later ones do

            sort_target: self.pick(&[0, 0, 1, 2, 3, 4]),
            serializable: self.one_in(4),
            keys_only: self.one_in(6),
            count_only: self.one_in(10),
            min_mod_revision,
            max_mod_revision,
            min_create_revision,
            max_create_revision,
        }
    }

    fn delete(&mut self) -> pb::PbDeleteRequest {
        pb::PbDeleteRequest { key: self.key(), range_end: self.range_end(), prev_kv: self.one_in(2) }
    }

    fn compare(&mut self, current: i64) -> pb::PbCompare {
        use pb::PbTargetUnion as Given;
        let target = self.roll(5) as i32;
        let near = (current - self.roll(6) as i64).max(0);
        let near = self.pick(&[0, near]);
        pb::PbCompare {
            result: self.roll(4) as i32,
            target,
            key: self.key(),
            range_end: if self.one_in(3) { self.range_end() } else { vec![] },
            target_union: Some(match target {
                0 => Given::Version(self.roll(4) as i64),
                1 => Given::CreateRevision(near),
                2 => Given::ModRevision(near),
                3 => Given::Value(self.pick(&["", "1", "2"]).into()),
                _ => Given::Lease(self.lease()),
            }),
        }
    }

    fn txn(&mut self, current: i64, depth: u64) -> pb::PbTxnRequest {
        let compares = self.roll(3);
        let mut txn = pb::PbTxnRequest {
            compare: (0..compares).map(|_| self.compare(current)).collect(),
            success: self.ops(current, depth),
            failure: self.ops(current, depth),
        };
        // To keep the value or the lease of a key that the same transaction has deleted kills etcd 3.4.
        if deletes_to_the_end(&mut txn) {
            keep_nothing(&mut txn);
        }
        txn
    }

    fn ops(&mut self, current: i64, depth: u64) -> Vec<pb::PbTxnRequestOp> {
        use pb::PbTxnOpRequest as Op;
        let count = self.roll(4);
        (0..count)
            .map(|_| {
                let request = match self.roll(10) {
                    0..5 => Some(Op::RequestPut(self.put())),
                    5 | 6 => Some(Op::RequestRange(self.range(current))),
                    7 => Some(Op::RequestDeleteRange(self.delete())),
                    8 if depth > 0 => Some(Op::RequestTxn(self.txn(current, depth - 1))),
                    9 if self.one_in(30) => None,
                    _ => Some(Op::RequestPut(self.put())),
                };
                pb::PbTxnRequestOp { request }
            })
            .collect()
    }
}

fn requests(txn: &mut pb::PbTxnRequest) -> impl Iterator<Item = &mut pb::PbTxnOpRequest> {
    txn.success.iter_mut().chain(&mut txn.failure).filter_map(|op| op.request.as_mut())
}

fn deletes_to_the_end(txn: &mut pb::PbTxnRequest) -> bool {
    requests(txn).any(|request| match request {
        pb::PbTxnOpRequest::RequestDeleteRange(delete) => delete.range_end == b"\0",
        pb::PbTxnOpRequest::RequestTxn(nested) => deletes_to_the_end(nested),
        _ => false,
    })
}

fn keep_nothing(txn: &mut pb::PbTxnRequest) {
    requests(txn).for_each(|request| match request {
        pb::PbTxnOpRequest::RequestPut(put) => (put.ignore_value, put.ignore_lease) = (false, false),
        pb::PbTxnOpRequest::RequestTxn(nested) => keep_nothing(nested),
        _ => {}
    });
}

/// What both answered; panics unless it is the same.
pub(crate) fn same<T: PartialEq + Debug>(
    what: &dyn Debug,
    hub: Result<T, Status>,
    etcd: Result<T, Status>,
) -> Option<T> {
    let plain =
        |result: Result<T, Status>| result.map_err(|status| (status.code(), status.message().to_owned()));
    let (hub, etcd) = (plain(hub), plain(etcd));
    assert_eq!(hub, etcd, "the hub (left) and etcd (right) differ on {what:?}");
    hub.ok()
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
        let header = match dice.roll(24) {
            0..8 => {
                let answer = ask!(self, "/etcdserverpb.KV/Put", dice.put(), pb::PbPutResponse);
                answer.and_then(|answer| answer.header)
            }
            8..12 => {
                let answer = ask!(self, "/etcdserverpb.KV/Range", dice.range(*current), pb::PbRangeResponse);
                answer.and_then(|answer| answer.header)
            }
            12 | 13 => {
                let answer = ask!(self, "/etcdserverpb.KV/DeleteRange", dice.delete(), pb::PbDeleteResponse);
                answer.and_then(|answer| answer.header)
            }
            14..19 => {
                let answer = ask!(self, "/etcdserverpb.KV/Txn", dice.txn(*current, 2), pb::PbTxnResponse);
                answer.and_then(|answer| answer.header)
            }
            19 => {
                let ttl = if dice.one_in(10) { 9_000_000_001 } else { 1000 + dice.roll(1000) as i64 };
                let grant = pb::PbLeaseGrantRequest { ttl, id: 1 + dice.roll(4) as i64 };
                let answer = ask!(self, "/etcdserverpb.Lease/LeaseGrant", grant, pb::PbLeaseGrantResponse);
                answer.and_then(|answer| answer.header)
            }
            20 if dice.one_in(2) => {
                let revoke = pb::PbLeaseRevokeRequest { id: 1 + dice.roll(4) as i64 };
                let answer = ask!(self, "/etcdserverpb.Lease/LeaseRevoke", revoke, pb::PbLeaseRevokeResponse);
                answer.and_then(|answer| answer.header)
            }
            21 => self.leases(dice).await,
            22 if dice.one_in(16) => {
                let compact =
                    pb::PbCompactionRequest { revision: *current + 2 - dice.roll(8) as i64, physical: false };
                let answer = ask!(self, "/etcdserverpb.KV/Compact", compact, pb::PbCompactionResponse);
                answer.and_then(|answer| answer.header)
            }
            _ => None,
        };
        if let Some(header) = header {
            *current = header.revision;
        }
    }

    async fn leases(&self, dice: &mut Dice) -> Option<pb::PbResponseHeader> {
        let request = pb::PbLeaseTimeToLiveRequest { id: 1 + dice.roll(4) as i64, keys: true };
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
    let mut dice = Dice(seed);
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
    for seed in 1..=4 {
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
