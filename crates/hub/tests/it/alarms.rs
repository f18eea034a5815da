//! The quota and alarms: what etcd refuses is refused, for as long, and what frees space never is.

use crate::differential::Etcd;
use crate::http::send;
use crate::raw::{call, channel};
use crate::snapshot::etcdctl;
use crate::{Fixture, config, connect, refusal};
use etcd_client::proto as pb;
use etcd_client::{Client, Compare, CompareOp, Txn, TxnOp, WatchOptions};
use hub::{Hub, HubConfig, Limits};
use tonic::Code;

const ALARM: &str = "/etcdserverpb.Maintenance/Alarm";

const QUOTA: u64 = 1 << 20;
const VALUE: usize = 50_000;

fn no_space() -> (Code, String) {
    (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded".to_owned())
}

async fn small(dir: &std::path::Path) -> Hub {
    let limits = Limits { quota: QUOTA, ..Limits::default() };
    Hub::start(HubConfig { limits, ..config(dir) }).await.unwrap()
}

/// Puts new keys until one is refused; tells how many were not, and the refusal.
async fn fill(client: &mut Client) -> (usize, (Code, String)) {
    for key in 0.. {
        if let Err(error) = client.put(format!("k{key:03}"), vec![0; VALUE], None).await {
            return (key, refusal::<()>(Err(error)));
        }
    }
    unreachable!()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_hub_refuses_what_adds_until_it_is_disarmed() {
    let dir = tempfile::tempdir().unwrap();
    let hub = small(dir.path()).await;
    let address = hub.address().to_string();
    let mut client = connect(&hub).await;
    let lease = client.lease_grant(600, None).await.unwrap().id();
    assert_eq!(etcdctl(&["--endpoints", &address, "alarm", "list"]).await, "");
    let (keys, refused) = fill(&mut client).await;
    assert_eq!(refused, no_space());
    assert!(keys * VALUE <= QUOTA as usize && keys * VALUE > QUOTA as usize / 2, "{keys}");

    // Once; whatever adds is refused from now on, however small.
    let member = client.member_list().await.unwrap().members()[0].id();
    let listed = format!("memberID:{member} alarm:NOSPACE \n");
    assert_eq!(etcdctl(&["--endpoints", &address, "alarm", "list"]).await, listed);
    assert_eq!(client.status().await.unwrap().errors(), [listed.trim_end_matches('\n')]);
    let health = send(&address, "GET", "/health", "").await;
    assert_eq!((health.status, health.body.as_str()), (503, "{\"health\":\"false\"}"));
    assert_eq!(refusal(client.put("a", "1", None).await), no_space());
    assert_eq!(refusal(client.lease_grant(60, None).await), no_space());
    let put = |key| Txn::new().and_then([TxnOp::put(key, "1", None)]);
    assert_eq!(refusal(client.txn(put("a")).await), no_space());
    let never = Compare::version("a", CompareOp::Greater, 7);
    let either = Txn::new().when([never]).and_then([TxnOp::put("a", "1", None)]);
    assert_eq!(refusal(client.txn(either).await), no_space());
    // Reading is not refused, nor is what frees space.
    assert_eq!(client.get("k000", None).await.unwrap().count(), 1);
    client.txn(Txn::new().and_then([TxnOp::get("k000", None)])).await.unwrap();
    client.watch("k", Some(WatchOptions::new().with_start_revision(2))).await.unwrap();
    client.lease_keep_alive(lease).await.unwrap();
    client.txn(Txn::new().and_then([TxnOp::delete("k000", None)])).await.unwrap();
    client.delete("k001", None).await.unwrap();
    client.lease_revoke(lease).await.unwrap();
    let revision = client.delete("k002", None).await.unwrap().header().unwrap().revision();
    client.compact(revision, None).await.unwrap();
    etcdctl(&["--endpoints", &address, "defrag"]).await;
    // There is space, but nobody said so; not even a restart does.
    assert_eq!(refusal(client.put("a", "1", None).await), no_space());
    drop(hub);
    let hub = small(dir.path()).await;
    let address = hub.address().to_string();
    let mut client = connect(&hub).await;
    assert_eq!(refusal(client.put("a", "1", None).await), no_space());
    assert_eq!(etcdctl(&["--endpoints", &address, "alarm", "disarm"]).await, listed);
    assert_eq!(etcdctl(&["--endpoints", &address, "alarm", "list"]).await, "");
    client.put("a", "1", None).await.unwrap();
    assert_eq!(send(&address, "GET", "/health", "").await.status, 200);
    // It is raised again, and stays through the log as through a snapshot.
    assert_eq!(fill(&mut client).await.1, no_space());
    client.defragment().await.unwrap();
    drop(hub);
    let hub = small(dir.path()).await;
    assert_eq!(refusal(connect(&hub).await.put("a", "1", None).await), no_space());
    assert_eq!(etcdctl(&["--endpoints", &hub.address().to_string(), "alarm", "disarm"]).await, listed);
    drop(hub);
    let hub = small(dir.path()).await;
    assert_eq!(etcdctl(&["--endpoints", &hub.address().to_string(), "alarm", "list"]).await, "");
}

/// What alarms are raised, and what each request says; on both.
async fn with_alarm(address: &str, alarm: i32) -> Vec<String> {
    fn said<T>(result: Result<T, etcd_client::Error>) -> String {
        match result {
            Ok(_) => "done".to_owned(),
            Err(etcd_client::Error::GRpcStatus(status)) => {
                format!("{:?} {}", status.code(), status.message())
            }
            Err(error) => panic!("{error}"),
        }
    }
    let mut client = Client::connect([address], None).await.unwrap();
    let channel = channel(address).await;
    // Actions: 0 lists, 1 raises, 2 disarms. Kinds: 0 any, 1 NOSPACE, 2 CORRUPT.
    let alarms = async |action, member_id, alarm| {
        let request = pb::PbAlarmRequest { action, member_id, alarm };
        let answer: pb::PbAlarmResponse = call(&channel, ALARM, request).await.unwrap();
        format!("{:?}", answer.alarms)
    };
    let mut log = Vec::new();
    for key in ["a", "b", "c"] {
        client.put(key, "1", None).await.unwrap();
    }
    let lease = client.lease_grant(600, None).await.unwrap().id();
    for (action, kind) in [(1, alarm), (1, alarm), (0, 0), (0, 1), (0, 2)] {
        log.push(alarms(action, 7, kind).await);
    }
    // There is none of no kind to disarm.
    log.push(alarms(2, 7, 0).await);
    log.push(said(client.put("a", "2", None).await));
    log.push(said(client.get("a", None).await));
    log.push(said(client.delete("a", None).await));
    for op in [TxnOp::get("a", None), TxnOp::delete("b", None), TxnOp::put("a", "3", None)] {
        log.push(said(client.txn(Txn::new().and_then([op])).await));
    }
    log.push(said(client.compact(2, None).await));
    log.push(said(client.lease_grant(60, None).await));
    log.push(said(client.lease_keep_alive(lease).await));
    log.push(said(client.lease_time_to_live(lease, None).await));
    log.push(said(client.leases().await));
    log.push(said(client.lease_revoke(lease).await));
    log.push(said(client.defragment().await));
    log.push(said(client.hash_kv(0).await));
    log.push(said(client.role_add("r").await));
    log.push(said(client.watch("a", None).await));
    // Somebody else's is not this one.
    for member in [8, 7, 7] {
        log.push(alarms(2, member, alarm).await);
        log.push(said(client.put("a", "4", None).await));
    }
    log.push(format!("{}", client.get("a", None).await.unwrap().kvs().len()));
    client.role_delete("r").await.unwrap();
    log
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alarm_is_what_it_is_in_etcd() {
    let fixture = Fixture::start().await;
    let dir = tempfile::tempdir().unwrap();
    let etcd = Etcd::start(dir.path()).await;
    for alarm in [1, 2] {
        let ours = with_alarm(&fixture.hub.address().to_string(), alarm).await;
        assert_eq!(ours, with_alarm(&etcd.address, alarm).await, "{alarm}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_alarm_is_refused() {
    let fixture = Fixture::start().await;
    let channel = channel(&fixture.hub.address().to_string()).await;
    for (action, alarm) in [(9, 1), (1, 0), (1, 7), (2, 7)] {
        let request = pb::PbAlarmRequest { action, member_id: 1, alarm };
        let answer: Result<pb::PbAlarmResponse, _> = call(&channel, ALARM, request).await;
        assert_eq!(answer.unwrap_err().code(), Code::InvalidArgument);
    }
}
