//! Leases that end, on both servers.
//!
//! A hundred sequences attach keys to leases of two seconds, move them, keep leases alive and revoke them; then all
//! wait once, together, so that a lease's end costs a sequence a fraction of a second. Which of two leases ends first
//! is nobody's promise: compared is, per sequence, what was told of each key, and what is left.

use super::generate::Scope;
use super::{Etcd, same};
use crate::dice::Dice;
use crate::raw::{call, channel};
use crate::{Fixture, effort, eventually};
use etcd_client::proto as pb;
use etcd_client::{Client, WatchOptions};
use std::collections::BTreeMap;
use std::fmt::Debug;
use tonic::Status;
use tonic::transport::Channel;

const SEQUENCES: i64 = 100;

/// What the keys of all sequences went through: kind and value, or none.
type Lives = BTreeMap<Vec<u8>, Vec<(i32, Vec<u8>)>>;

async fn both<T, U>(servers: [&Channel; 2], path: &'static str, request: T) -> Option<U>
where
    T: prost::Message + Clone + Debug + 'static,
    U: prost::Message + Default + PartialEq + Debug + Forget + 'static,
{
    let [hub, etcd] = servers;
    let hub: Result<U, Status> = call(hub, path, request.clone()).await;
    let etcd: Result<U, Status> = call(etcd, path, request.clone()).await;
    same(&request, hub.map(U::forget), etcd.map(U::forget))
}

/// Answers without what depends on the moment: a lease may end while others are still asked for.
trait Forget {
    fn forget(self) -> Self;
}

impl Forget for pb::PbPutResponse {
    fn forget(self) -> Self {
        Self { header: None, prev_kv: None }
    }
}

impl Forget for pb::PbLeaseGrantResponse {
    fn forget(self) -> Self {
        Self { header: None, ..self }
    }
}

impl Forget for pb::PbLeaseTimeToLiveResponse {
    fn forget(mut self) -> Self {
        self.keys.sort();
        Self { header: None, ttl: self.ttl.min(0), ..self }
    }
}

async fn attach(servers: [&Channel; 2], scope: &Scope, dice: &mut Dice) {
    for id in scope.leases + 1..=scope.leases + 3 {
        let ttl = dice.pick(&[1, 2, 2, 600]);
        let grant = pb::PbLeaseGrantRequest { ttl, id };
        both::<_, pb::PbLeaseGrantResponse>(servers, "/etcdserverpb.Lease/LeaseGrant", grant).await.unwrap();
    }
    for _ in 0..dice.roll(10) {
        let key = format!("{}{}", scope.prefix, dice.pick(&["a", "b", "c", "d"])).into();
        let lease = dice.pick(&[0, 1, 1, 2, 3]);
        let lease = if lease == 0 { 0 } else { scope.leases + lease };
        let value = dice.pick(&["1", "2"]).into();
        let put = pb::PbPutRequest { key, value, lease, ..Default::default() };
        both::<_, pb::PbPutResponse>(servers, "/etcdserverpb.KV/Put", put).await;
    }
}

/// Everything that happened, a key's life by itself.
async fn lives(address: &str) -> Lives {
    let mut client = Client::connect([address], None).await.unwrap();
    let last = client.put("end", "", None).await.unwrap().header().unwrap().revision();
    let mut stream =
        client.watch("", Some(WatchOptions::new().with_all_keys().with_start_revision(2))).await.unwrap();
    let mut lives = Lives::new();
    let mut reached = 0;
    while reached < last {
        let answer = crate::soon(stream.message()).await.unwrap().unwrap();
        for event in answer.events() {
            let kv = event.kv().unwrap();
            reached = kv.mod_revision();
            let kind = if event.event_type() == etcd_client::EventType::Put { 0 } else { 1 };
            lives.entry(kv.key().to_vec()).or_default().push((kind, kv.value().to_vec()));
        }
    }
    lives
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_end_the_same_way() {
    let dir = tempfile::tempdir().unwrap();
    let (etcd, fixture) = (Etcd::start(dir.path()).await, Fixture::start().await);
    let hub_address = fixture.hub.address().to_string();
    let (hub, real) = (channel(&hub_address).await, channel(&etcd.address).await);
    let servers = [&hub, &real];
    let mut dice = Dice::seeded(1);
    let mut leases = Vec::new();
    for round in 0..i64::from(effort()) {
        for number in round * SEQUENCES..(round + 1) * SEQUENCES {
            let scope = Scope { prefix: format!("{number:08}/"), leases: number * 4 };
            attach(servers, &scope, &mut dice).await;
            leases.extend(scope.leases + 1..=scope.leases + 3);
        }
    }
    let path = "/etcdserverpb.Lease/LeaseTimeToLive";
    let mut ended = 0;
    for id in leases {
        let request = pb::PbLeaseTimeToLiveRequest { id, keys: true };
        eventually("short leases have ended", async || {
            let mut over = true;
            for server in servers {
                let answer: pb::PbLeaseTimeToLiveResponse = call(server, path, request).await.unwrap();
                over &= answer.granted_ttl > 2 || answer.ttl == -1;
            }
            over
        })
        .await;
        let left: pb::PbLeaseTimeToLiveResponse = both(servers, path, request).await.unwrap();
        ended += usize::from(left.ttl == -1);
    }
    assert!(ended > 50, "{ended}");
    let (hub, real) = (lives(&hub_address).await, lives(&etcd.address).await);
    for (key, life) in &hub {
        assert_eq!(Some(life), real.get(key), "{}", String::from_utf8_lossy(key));
    }
    assert_eq!(hub.len(), real.len());
    println!("{ended} leases ended, {} keys", hub.len());
}
