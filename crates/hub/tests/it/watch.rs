//! Watches through etcd-client.

use crate::{Fixture, eventually, soon};
use etcd_client::{
    Client, DeleteOptions, EventType, PutOptions, Txn, TxnOp, WatchFilterType, WatchOptions, WatchResponse,
    WatchStream,
};

async fn next(stream: &mut WatchStream) -> WatchResponse {
    soon(stream.message()).await.unwrap().expect("the stream goes on")
}

/// The events of one answer as `revision kind key=value`.
fn show(response: &WatchResponse) -> Vec<String> {
    let event = |event: &etcd_client::Event| {
        let kv = event.kv().unwrap();
        let kind = if event.event_type() == EventType::Put { "put" } else { "delete" };
        format!("{} {kind} {}={}", kv.mod_revision(), kv.key_str().unwrap(), kv.value_str().unwrap())
    };
    response.events().iter().map(event).collect()
}

async fn put(client: &mut Client, key: &str, value: &str) -> i64 {
    client.put(key, value, None).await.unwrap().header().unwrap().revision()
}

#[tokio::test(flavor = "multi_thread")]
async fn from_now_on() {
    let fixture = Fixture::start().await;
    let mut client = fixture.client().await;
    put(&mut client, "p/a", "0").await;
    let mut stream = client.watch("p/", Some(WatchOptions::new().with_prefix())).await.unwrap();
    let created = next(&mut stream).await;
    assert!(created.created() && created.events().is_empty());
    assert_eq!((created.watch_id(), created.header().unwrap().revision()), (0, 2));
    put(&mut client, "q", "not mine").await;
    put(&mut client, "p/b", "1").await;
    assert_eq!(show(&next(&mut stream).await), ["4 put p/b=1"]);
    client.delete("p/", Some(DeleteOptions::new().with_prefix())).await.unwrap();
    let deleted = next(&mut stream).await;
    assert_eq!(show(&deleted), ["5 delete p/a=", "5 delete p/b="], "one revision, one answer");
}

#[tokio::test(flavor = "multi_thread")]
async fn from_the_past_and_the_future() {
    let fixture = Fixture::start().await;
    let mut client = fixture.client().await;
    for value in ["1", "2", "3"] {
        put(&mut client, "a", value).await; // 2, 3, 4
    }
    let options = WatchOptions::new().with_start_revision(3).with_prev_key();
    let mut stream = client.watch("a", Some(options)).await.unwrap();
    assert!(next(&mut stream).await.created());
    let past = next(&mut stream).await;
    assert_eq!(show(&past), ["3 put a=2", "4 put a=3"]);
    assert_eq!(past.events()[0].prev_kv().unwrap().value_str().unwrap(), "1");

    let mut stream = client.watch("a", Some(WatchOptions::new().with_start_revision(6))).await.unwrap();
    assert!(next(&mut stream).await.created());
    put(&mut client, "a", "5").await;
    put(&mut client, "a", "6").await;
    assert_eq!(show(&next(&mut stream).await), ["6 put a=6"]);
}

#[tokio::test]
async fn a_deletion_at_the_compacted_revision_is_told() {
    let fixture = Fixture::start().await;
    let mut client = fixture.client().await;
    put(&mut client, "a", "1").await;
    client.delete("a", None).await.unwrap();
    client.compact(3, None).await.unwrap();
    let mut stream = client.watch("a", Some(WatchOptions::new().with_start_revision(3))).await.unwrap();
    assert!(next(&mut stream).await.created());
    assert_eq!(show(&next(&mut stream).await), ["3 delete a="]);
}

#[tokio::test(flavor = "multi_thread")]
async fn below_the_compacted_revision() {
    let fixture = Fixture::start().await;
    let mut client = fixture.client().await;
    for value in ["1", "2", "3"] {
        put(&mut client, "a", value).await;
    }
    client.compact(4, None).await.unwrap();
    let mut stream = client.watch("a", Some(WatchOptions::new().with_start_revision(2))).await.unwrap();
    let created = next(&mut stream).await;
    assert!(created.created() && !created.canceled());
    let canceled = next(&mut stream).await;
    assert!(canceled.canceled());
    assert_eq!((canceled.watch_id(), canceled.compact_revision()), (created.watch_id(), 4));
    stream.watch("a", Some(WatchOptions::new().with_start_revision(4))).await.unwrap();
    assert!(next(&mut stream).await.created());
    assert_eq!(show(&next(&mut stream).await), ["4 put a=3"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_watchers_on_one_stream() {
    let fixture = Fixture::start().await;
    let mut client = fixture.client().await;
    let mut stream = client.watch("a", None).await.unwrap();
    assert_eq!(next(&mut stream).await.watch_id(), 0);
    stream.watch("a", Some(WatchOptions::new().with_watch_id(7))).await.unwrap();
    assert_eq!(next(&mut stream).await.watch_id(), 7);
    stream.watch("b", Some(WatchOptions::new().with_watch_id(7))).await.unwrap();
    let refused = next(&mut stream).await;
    assert!(refused.created() && refused.canceled());
    assert_eq!(refused.watch_id(), -1);
    assert_eq!(refused.cancel_reason(), "mvcc: duplicate watch ID provided on the WatchStream");
    stream.watch("b", Some(WatchOptions::new().with_range("a"))).await.unwrap();
    let refused = next(&mut stream).await;
    assert!(refused.created() && refused.canceled());
    assert_eq!(refused.cancel_reason(), "mvcc: watcher range is empty");
    stream.watch("c", None).await.unwrap();
    assert_eq!(next(&mut stream).await.watch_id(), 1);

    put(&mut client, "a", "1").await;
    let mut ids = [next(&mut stream).await.watch_id(), next(&mut stream).await.watch_id()];
    ids.sort_unstable();
    assert_eq!(ids, [0, 7]);
    stream.cancel(7).await.unwrap();
    let canceled = next(&mut stream).await;
    assert!(canceled.canceled() && canceled.watch_id() == 7);
    assert_eq!((canceled.compact_revision(), canceled.cancel_reason()), (0, ""));
    stream.cancel(99).await.unwrap(); // unknown: no answer
    put(&mut client, "a", "2").await;
    assert_eq!(next(&mut stream).await.watch_id(), 0);
    put(&mut client, "c", "3").await;
    assert_eq!(next(&mut stream).await.watch_id(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn filters() {
    let fixture = Fixture::start().await;
    let mut client = fixture.client().await;
    let only = |filter| Some(WatchOptions::new().with_filters(vec![filter]).with_prev_key());
    let mut deletions = client.watch("a", only(WatchFilterType::NoPut)).await.unwrap();
    let mut puts = client.watch("a", only(WatchFilterType::NoDelete)).await.unwrap();
    for stream in [&mut deletions, &mut puts] {
        assert!(next(stream).await.created());
    }
    put(&mut client, "a", "1").await;
    client.delete("a", None).await.unwrap();
    put(&mut client, "a", "2").await;
    let deleted = next(&mut deletions).await;
    assert_eq!(show(&deleted), ["3 delete a="]);
    assert_eq!(deleted.events()[0].prev_kv().unwrap().value_str().unwrap(), "1");
    assert_eq!(show(&next(&mut puts).await), ["2 put a=1"]);
    assert_eq!(show(&next(&mut puts).await), ["4 put a=2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_lease_is_one_answer() {
    let fixture = Fixture::start().await;
    let mut client = fixture.client().await;
    let lease = client.lease_grant(2, None).await.unwrap().id();
    for key in ["x/b", "x/a"] {
        client.put(key, "1", Some(PutOptions::new().with_lease(lease))).await.unwrap();
    }
    let mut stream = client.watch("x/", Some(WatchOptions::new().with_prefix())).await.unwrap();
    assert!(next(&mut stream).await.created());
    assert_eq!(show(&next(&mut stream).await), ["4 delete x/a=", "4 delete x/b="]);
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_is_honest() {
    let fixture = Fixture::start().await;
    let mut client = fixture.client().await;
    let mut stream = client.watch("a", None).await.unwrap();
    assert!(next(&mut stream).await.created());
    put(&mut client, "other", "1").await;
    stream.request_progress().await.unwrap();
    let progress = next(&mut stream).await;
    assert_eq!((progress.watch_id(), progress.header().unwrap().revision()), (-1, 2));
    assert!(progress.events().is_empty());
    // Whatever was acknowledged before the question comes before the answer.
    for round in 0..200 {
        let revision = put(&mut client, "a", "x").await;
        stream.request_progress().await.unwrap();
        let (mut seen, mut told) = (0, 0);
        while told == 0 {
            let answer = next(&mut stream).await;
            seen =
                seen.max(answer.events().iter().map(|e| e.kv().unwrap().mod_revision()).max().unwrap_or(0));
            if answer.watch_id() == -1 {
                told = answer.header().unwrap().revision();
            }
        }
        assert_eq!((seen, told), (revision, revision), "round {round}");
    }
}

/// Fills what lies between the hub and a client that does not read: the stream's queue and HTTP/2's window.
async fn flood(client: &mut Client, writes: usize) -> i64 {
    let mut last = 0;
    for write in 0..writes {
        let value = format!("{write:0>4096}");
        last = put(client, "flood", &value).await;
    }
    last
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_client_loses_nothing_and_stalls_nobody() {
    let fixture = Fixture::start().await;
    let mut client = fixture.client().await;
    let mut slow = client.watch("flood", None).await.unwrap();
    assert!(next(&mut slow).await.created());
    let mut quick = fixture.client().await.watch("flood", None).await.unwrap();
    assert!(next(&mut quick).await.created());
    let reader = tokio::spawn(async move {
        let mut revisions = Vec::new();
        while revisions.len() < 1500 {
            let answer = next(&mut quick).await;
            revisions.extend(answer.events().iter().map(|event| event.kv().unwrap().mod_revision()));
        }
        revisions
    });
    let last = flood(&mut client, 1500).await;
    let expected: Vec<i64> = (2..=last).collect();
    assert_eq!(soon(reader).await.unwrap(), expected);
    // Only now does the slow one read; more is written meanwhile.
    let mut revisions: Vec<i64> = Vec::new();
    let mut more = Some(fixture.client().await);
    let mut last = last;
    while revisions.last() != Some(&last) {
        let answer = next(&mut slow).await;
        revisions.extend(answer.events().iter().map(|event| event.kv().unwrap().mod_revision()));
        if let Some(mut client) = more.take() {
            last = flood(&mut client, 100).await;
        }
    }
    assert_eq!(revisions, (2..=last).collect::<Vec<_>>());
    put(&mut client, "flood", "again").await;
    assert_eq!(show(&next(&mut slow).await).len(), 1, "and it is up to date again");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_too_slow_is_told_where_to_go_on() {
    let fixture = Fixture::start().await;
    let mut client = fixture.client().await;
    let mut slow = client.watch("flood", None).await.unwrap();
    assert!(next(&mut slow).await.created());
    let last = flood(&mut client, 1500).await;
    client.compact(last, None).await.unwrap();
    let mut expected = 2;
    loop {
        let answer = next(&mut slow).await;
        if answer.canceled() {
            assert_eq!(answer.compact_revision(), last);
            break;
        }
        for event in answer.events() {
            assert_eq!(event.kv().unwrap().mod_revision(), expected, "nothing is left out before");
            expected += 1;
        }
    }
    assert!(expected < last);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_revision_comes_in_fragments_if_allowed() {
    let fixture = Fixture::start().await;
    let mut client = fixture.client().await;
    let options = WatchOptions::new().with_prefix().with_prev_key().with_fragment();
    let mut stream = client.watch("k", Some(options)).await.unwrap();
    assert!(next(&mut stream).await.created());
    for key in 0..6 {
        client.put(format!("k{key}"), vec![b'x'; 1 << 20], None).await.unwrap();
        assert_eq!(next(&mut stream).await.events().len(), 1);
    }
    client.delete("k", Some(DeleteOptions::new().with_prefix())).await.unwrap();
    let mut keys = 0;
    let mut answers = 0;
    while keys < 6 {
        keys += next(&mut stream).await.events().len();
        answers += 1;
    }
    assert!(answers >= 3, "{answers}: 6 MiB do not fit into fewer");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_is_one_answer_and_a_group_of_them_stays_in_order() {
    let fixture = Fixture::start().await;
    let mut client = fixture.client().await;
    let mut stream = client.watch("t/", Some(WatchOptions::new().with_prefix())).await.unwrap();
    assert!(next(&mut stream).await.created());
    let mut writers = Vec::new();
    for writer in 0..16 {
        let mut client = client.clone();
        writers.push(tokio::spawn(async move {
            for _ in 0..20 {
                let ops = ["a", "b"].map(|half| TxnOp::put(format!("t/{writer}/{half}"), "x", None));
                client.txn(Txn::new().and_then(ops)).await.unwrap();
            }
        }));
    }
    let mut revisions = Vec::new();
    while revisions.len() < 2 * 16 * 20 {
        let answer = next(&mut stream).await;
        let of_answer: Vec<i64> = answer.events().iter().map(|e| e.kv().unwrap().mod_revision()).collect();
        assert!(of_answer.chunks(2).all(|pair| pair.len() == 2 && pair[0] == pair[1]), "{of_answer:?}");
        revisions.extend(of_answer);
    }
    assert!(revisions.is_sorted());
    for writer in writers {
        writer.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_end_are_forgotten() {
    let fixture = Fixture::start().await;
    let mut client = fixture.client().await;
    for _ in 0..50 {
        let mut stream = client.watch("a", None).await.unwrap();
        assert!(next(&mut stream).await.created());
    }
    // Nothing to see from outside but that it goes on working.
    let mut stream = client.watch("a", None).await.unwrap();
    assert!(next(&mut stream).await.created());
    eventually("writes go on", async || put(&mut client, "a", "1").await > 1).await;
    assert_eq!(next(&mut stream).await.events().len(), 1);
}

/// What one kind of watcher in [`whoever_watches_alike_shares_bytes_and_nothing_else`] asks for.
#[derive(Clone, Copy)]
struct Wants {
    id: i64,
    prefix: bool,
    hides: Option<WatchFilterType>,
    prev_kv: bool,
}

impl Wants {
    fn options(&self) -> Option<WatchOptions> {
        let mut options = WatchOptions::new().with_watch_id(self.id);
        if self.prefix {
            options = options.with_prefix();
        }
        if self.prev_kv {
            options = options.with_prev_key();
        }
        Some(options.with_filters(self.hides.into_iter().collect::<Vec<_>>()))
    }

    /// Of `revision kind key before` what it sees.
    fn sees(&self, all: &[(i64, EventType, &'static str, usize)]) -> Vec<String> {
        let hidden = |kind| match self.hides {
            Some(WatchFilterType::NoPut) => kind == EventType::Put,
            Some(WatchFilterType::NoDelete) => kind == EventType::Delete,
            None => false,
        };
        let seen = all.iter().filter(|(_, kind, key, _)| (self.prefix || *key == "k/") && !hidden(*kind));
        seen.map(|(revision, kind, key, before)| {
            let before = if self.prev_kv { *before } else { 0 };
            format!("{} {revision} {kind:?} {key} {before}", self.id)
        })
        .collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_watches_alike_shares_bytes_and_nothing_else() {
    let fixture = Fixture::start().await;
    let mut writer = fixture.client().await;
    let clients = [fixture.client().await, fixture.client().await, fixture.client().await];
    // More kinds than the hub looks at to find one that is the same, and three streams of each, mixed.
    let mut kinds = Vec::new();
    for prefix in [true, false] {
        for hides in [None, Some(WatchFilterType::NoPut), Some(WatchFilterType::NoDelete)] {
            kinds.extend([false, true].map(|prev_kv| Wants { id: 3, prefix, hides, prev_kv }));
        }
    }
    kinds.extend([4, 5].map(|id| Wants { id, prefix: true, hides: None, prev_kv: false }));
    let mut streams = Vec::new();
    for mut client in clients {
        for wants in &kinds {
            let mut stream = client.watch("k/", wants.options()).await.unwrap();
            assert!(next(&mut stream).await.created());
            // A second watcher on every other stream.
            let second = Wants { id: 9, ..*wants };
            if streams.len() % 2 == 0 {
                stream.watch("k/", second.options()).await.unwrap();
                assert!(next(&mut stream).await.created());
            }
            let both = [*wants, second];
            let watchers = if streams.len() % 2 == 0 { both.to_vec() } else { vec![*wants] };
            streams.push((stream, watchers));
        }
    }
    let txn = |length: usize| {
        Txn::new().and_then(["k/", "k/b"].map(|key| TxnOp::put(key, vec![b'x'; length], None)))
    };
    // The third is too large to be shared.
    for length in [10, 20, 40_000] {
        writer.txn(txn(length)).await.unwrap();
    }
    writer.delete("k/", Some(DeleteOptions::new().with_prefix())).await.unwrap();
    let lengths = [(2, 10, 0), (3, 20, 10), (4, 40_000, 20), (5, 0, 40_000)];
    let all: Vec<_> = lengths
        .into_iter()
        .flat_map(|(revision, length, before)| {
            let kind = if length == 0 { EventType::Delete } else { EventType::Put };
            ["k/", "k/b"].map(|key| (revision, kind, key, before))
        })
        .collect();
    for (mut stream, watchers) in streams {
        let mut expected: Vec<String> = watchers.iter().flat_map(|wants| wants.sees(&all)).collect();
        let mut seen = Vec::new();
        while seen.len() < expected.len() {
            let answer = next(&mut stream).await;
            for event in answer.events() {
                let kv = event.kv().unwrap();
                let before = event.prev_kv().map_or(0, |kv| kv.value().len());
                let (id, revision, kind) = (answer.watch_id(), kv.mod_revision(), event.event_type());
                seen.push(format!("{id} {revision} {kind:?} {} {before}", kv.key_str().unwrap()));
            }
        }
        // Two watchers of a stream are independent of each other.
        seen.sort_by_key(|event| event.starts_with('9'));
        expected.sort_by_key(|event| event.starts_with('9'));
        assert_eq!(seen, expected);
    }
}
