//! KV, leases, cluster and maintenance through etcd-client.

use crate::{Fixture, config, connect, eventually, open, refusal, soon};
use etcd_client::{
    Compare, CompareOp, DeleteOptions, GetOptions, LeaseGrantOptions, LeaseTimeToLiveOptions, PutOptions,
    SortOrder, SortTarget, Txn, TxnOp, TxnOpResponse,
};
use hub::{Hub, HubError};
use std::time::{Duration, Instant};
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn put_get_delete() {
    let fixture = Fixture::start().await;
    let mut client = fixture.client().await;
    let put = client.put("a", "1", None).await.unwrap();
    let header = put.header().unwrap();
    assert_eq!(header.revision(), 2);
    assert!(header.cluster_id() != 0 && header.member_id() != 0 && header.raft_term() != 0);
    let put = client.put("a", "2", Some(PutOptions::new().with_prev_key())).await.unwrap();
    assert_eq!(put.prev_key().unwrap().value_str().unwrap(), "1");
    for key in ["b", "c"] {
        client.put(key, "x", None).await.unwrap();
    }
    let options =
        GetOptions::new().with_all_keys().with_sort(SortTarget::Key, SortOrder::Descend).with_limit(2);
    let get = client.get("", Some(options)).await.unwrap();
    let keys: Vec<_> = get.kvs().iter().map(|kv| kv.key_str().unwrap()).collect();
    assert_eq!((keys, get.more(), get.count()), (vec!["c", "b"], true, 3));
    let old = client.get("a", Some(GetOptions::new().with_revision(2))).await.unwrap();
    assert_eq!(old.kvs()[0].value_str().unwrap(), "1");
    let options = DeleteOptions::new().with_prefix().with_prev_key();
    let delete = client.delete("", Some(options)).await.unwrap();
    assert_eq!((delete.deleted(), delete.prev_kvs().len()), (3, 3));
    assert_eq!(client.get("a", None).await.unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_can_be_streamed() {
    let fixture = Fixture::start().await;
    let mut client = fixture.client().await;
    client.put("a", "1", None).await.unwrap();
    let mut stream = client.kv_client().get_stream("a", None).await.unwrap();
    let part = stream.message().await.unwrap().unwrap();
    assert_eq!(part.kvs()[0].value_str().unwrap(), "1");
    assert!(stream.message().await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_bear_etcds_codes_and_texts() {
    let fixture = Fixture::start().await;
    let mut client = fixture.client().await;
    client.put("a", "1", None).await.unwrap();
    client.put("a", "2", None).await.unwrap();
    client.compact(3, None).await.unwrap();
    let at = |revision| Some(GetOptions::new().with_revision(revision));
    let compacted = "etcdserver: mvcc: required revision has been compacted".to_owned();
    let future = "etcdserver: mvcc: required revision is a future revision".to_owned();
    assert_eq!(refusal(client.get("a", at(2)).await), (Code::OutOfRange, compacted.clone()));
    assert_eq!(refusal(client.get("a", at(9)).await), (Code::OutOfRange, future.clone()));
    assert_eq!(refusal(client.compact(3, None).await), (Code::OutOfRange, compacted));
    assert_eq!(refusal(client.compact(9, None).await), (Code::OutOfRange, future));
    let unknown = Some(PutOptions::new().with_lease(77));
    let no_lease = "etcdserver: requested lease not found".to_owned();
    assert_eq!(refusal(client.put("a", "1", unknown).await), (Code::NotFound, no_lease.clone()));
    assert_eq!(refusal(client.lease_revoke(77).await), (Code::NotFound, no_lease));
    let no_key = "etcdserver: key is not provided".to_owned();
    assert_eq!(refusal(client.put("", "1", None).await), (Code::InvalidArgument, no_key));
    let large = "etcdserver: request is too large".to_owned();
    let value = vec![0; 3 << 19];
    assert_eq!(refusal(client.put("a", value.clone(), None).await), (Code::InvalidArgument, large));
    client.put("a", &value[..value.len() - 100], None).await.unwrap();
    let long = Txn::new().and_then((0..129).map(|_| TxnOp::get("a", None)).collect::<Vec<_>>());
    let many = "etcdserver: too many operations in txn request".to_owned();
    assert_eq!(refusal(client.txn(long).await), (Code::InvalidArgument, many));
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_may_be_larger_than_requests() {
    let fixture = Fixture::start().await;
    let mut client = fixture.client().await;
    for key in 0..10 {
        client.put(format!("k{key}"), vec![7; 1 << 20], None).await.unwrap();
    }
    let mut kv = client.kv_client().max_decoding_message_size(usize::MAX);
    let all = kv.get("k", Some(GetOptions::new().with_prefix())).await.unwrap();
    assert_eq!(all.kvs().iter().map(|kv| kv.value().len()).sum::<usize>(), 10 << 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction() {
    let fixture = Fixture::start().await;
    let mut client = fixture.client().await;
    client.put("a", "1", None).await.unwrap();
    let inner = Txn::new()
        .when(vec![Compare::version("b", CompareOp::Equal, 0)])
        .and_then(vec![TxnOp::put("b", "new", None)])
        .or_else(vec![TxnOp::put("b", "old", None)]);
    let txn = Txn::new()
        .when(vec![
            Compare::value("a", CompareOp::Equal, "1"),
            Compare::mod_revision("a", CompareOp::Equal, 2),
        ])
        .and_then(vec![TxnOp::put("a", "2", None), TxnOp::get("a", None), TxnOp::txn(inner)])
        .or_else(vec![TxnOp::delete("a", None)]);
    let done = client.txn(txn.clone()).await.unwrap();
    assert!(done.succeeded());
    assert_eq!(done.header().unwrap().revision(), 3);
    let ops = done.op_responses();
    let [TxnOpResponse::Put(_), TxnOpResponse::Get(get), TxnOpResponse::Txn(nested)] = ops.as_slice() else {
        panic!("{ops:?}");
    };
    assert_eq!(get.kvs()[0].value_str().unwrap(), "2");
    assert!(nested.succeeded());
    let again = client.txn(txn).await.unwrap();
    assert!(!again.succeeded());
    assert_eq!(client.get("b", None).await.unwrap().kvs()[0].value_str().unwrap(), "new");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_lives_and_dies() {
    let fixture = Fixture::start().await;
    let mut client = fixture.client().await;
    let lease = client.lease_grant(1, None).await.unwrap();
    assert!(lease.id() > 0);
    assert_eq!(lease.ttl(), 2, "the minimum");
    let id = lease.id();
    client.put("mine", "x", Some(PutOptions::new().with_lease(id))).await.unwrap();
    let (mut keeper, mut alive) = client.lease_keep_alive(id).await.unwrap();
    keeper.keep_alive().await.unwrap();
    let kept = Instant::now();
    assert_eq!(soon(alive.message()).await.unwrap().unwrap().ttl(), 2);
    let left = client.lease_time_to_live(id, Some(LeaseTimeToLiveOptions::new().with_keys())).await.unwrap();
    assert_eq!((left.granted_ttl(), left.keys()), (2, &[b"mine".to_vec()][..]));
    assert!((0..=2).contains(&left.ttl()));

    eventually("the lease expires", async || client.get("mine", None).await.unwrap().count() == 0).await;
    let lived = kept.elapsed();
    assert!(lived > Duration::from_millis(1900), "{lived:?}: too early");
    assert_eq!(client.lease_time_to_live(id, None).await.unwrap().ttl(), -1);
    keeper.keep_alive().await.unwrap();
    assert_eq!(soon(alive.message()).await.unwrap().unwrap().ttl(), 0, "not an error");
    assert!(client.leases().await.unwrap().leases().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_can_be_named_and_revoked() {
    let fixture = Fixture::start().await;
    let mut client = fixture.client().await;
    let named = || Some(LeaseGrantOptions::new().with_id(42));
    client.lease_grant(60, named()).await.unwrap();
    let exists = (Code::FailedPrecondition, "etcdserver: lease already exists".to_owned());
    assert_eq!(refusal(client.lease_grant(60, named()).await), exists);
    let large = (Code::OutOfRange, "etcdserver: too large lease TTL".to_owned());
    assert_eq!(refusal(client.lease_grant(9_000_000_001, None).await), large);
    for key in ["b", "a"] {
        client.put(key, "x", Some(PutOptions::new().with_lease(42))).await.unwrap();
    }
    assert_eq!(client.lease_revoke(42).await.unwrap().header().unwrap().revision(), 4);
    assert_eq!(client.get("", Some(GetOptions::new().with_all_keys())).await.unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_tells_how_it_is() {
    let fixture = Fixture::start().await;
    let mut client = fixture.client().await;
    client.put("a", "1", None).await.unwrap();
    let status = client.status().await.unwrap();
    assert!(status.version().starts_with("3.5."));
    assert!(status.db_size() > 0 && status.raft_term() > 0 && status.raft_index() > 0);
    assert_eq!(status.leader(), status.header().unwrap().member_id());
    let members = client.member_list().await.unwrap();
    let member = &members.members()[0];
    assert_eq!((member.id(), member.name()), (status.leader(), "test"));
    assert_eq!(member.client_urls(), [format!("http://{}", fixture.hub.address())]);
    assert!(client.hash_kv(0).await.unwrap().hash() != 0);
    client.defragment().await.unwrap();
    assert_eq!(client.get("a", None).await.unwrap().count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_logs_in_is_told_that_there_is_no_need() {
    let fixture = Fixture::start().await;
    let options = etcd_client::ConnectOptions::new().with_user("root", "secret");
    let refused = etcd_client::Client::connect([fixture.hub.address().to_string()], Some(options)).await;
    let text = "etcdserver: authentication is not enabled".to_owned();
    assert_eq!(refusal(refused.map(|_| ())), (Code::FailedPrecondition, text));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_streams_share_a_connection() {
    let fixture = Fixture::start().await;
    let mut client = fixture.client().await;
    let mut streams = Vec::new();
    for _ in 0..500 {
        let id = client.lease_grant(60, None).await.unwrap().id();
        streams.push(client.lease_keep_alive(id).await.unwrap());
    }
    for (keeper, alive) in &mut streams {
        keeper.keep_alive().await.unwrap();
        assert_eq!(soon(alive.message()).await.unwrap().unwrap().ttl(), 60);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hubs_cannot_have_one_directory() {
    let fixture = Fixture::start().await;
    let error = Hub::start(config(fixture.dir.path())).await.unwrap_err();
    assert!(matches!(error, HubError::Locked { .. }), "{error:?}");
    assert!(error.to_string().contains("in use by another hub"), "{error}");
    fixture.hub.shutdown().await;
    open(fixture.dir.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_is_named() {
    let fixture = Fixture::start().await;
    let dir = tempfile::tempdir().unwrap();
    let taken = hub::HubConfig { listen: fixture.hub.address(), ..config(dir.path()) };
    let error = Hub::start(taken).await.unwrap_err();
    assert!(matches!(error, HubError::Listen { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_streams_with_unavailable_and_keeps_everything() {
    let Fixture { hub, dir } = Fixture::start().await;
    let mut client = connect(&hub).await;
    client.put("a", "1", None).await.unwrap();
    let mut watch = client.watch("a", None).await.unwrap();
    assert!(soon(watch.message()).await.unwrap().unwrap().created());
    let lease = client.lease_grant(60, None).await.unwrap().id();
    let (_keeper, mut alive) = client.lease_keep_alive(lease).await.unwrap();
    let start = Instant::now();
    soon(hub.shutdown()).await;
    assert!(start.elapsed() < Duration::from_secs(4), "did not wait for idle streams");
    let stopped = (Code::Unavailable, "etcdserver: server stopped".to_owned());
    assert_eq!(refusal(soon(watch.message()).await), stopped);
    assert_eq!(refusal(soon(alive.message()).await), stopped);
    let hub = open(dir.path()).await;
    assert_eq!(connect(&hub).await.get("a", None).await.unwrap().count(), 1);
}
