//! Locks and elections that the server itself runs: the same story told to the hub and to a real etcd.

use crate::differential::Etcd;
use crate::{Fixture, eventually, refusal, soon};
use etcd_client::{
    CampaignResponse, Client, GetOptions, LeaderKey, LockOptions, ProclaimOptions, ResignOptions,
};
use tonic::Code;

/// Runs a story on both kinds of server, and compares what it tells.
macro_rules! on_both {
    ($story:expr) => {{
        let fixture = Fixture::start().await;
        let hub = soon($story(fixture.hub.address().to_string())).await;
        let dir = tempfile::tempdir().unwrap();
        let etcd = Etcd::start(dir.path()).await;
        let real = soon($story(etcd.address.clone())).await;
        assert_eq!(hub, real, "the hub (left) and etcd (right) differ");
        hub
    }};
}

async fn client(address: &str) -> Client {
    Client::connect([address], None).await.unwrap()
}

async fn lease(client: &mut Client, id: i64) -> i64 {
    let options = etcd_client::LeaseGrantOptions::new().with_id(id);
    client.lease_grant(600, Some(options)).await.unwrap().id()
}

async fn keys(client: &mut Client, prefix: &str) -> Vec<String> {
    let options = GetOptions::new().with_prefix();
    let response = client.get(prefix, Some(options)).await.unwrap();
    response.kvs().iter().map(|kv| kv.key_str().unwrap().to_owned()).collect()
}

async fn locking(address: String) -> Vec<String> {
    let mut client = client(&address).await;
    let mut told = Vec::new();
    let (one, two) = (lease(&mut client, 0x11).await, lease(&mut client, 0xf2).await);
    let with = |lease| Some(LockOptions::new().with_lease(lease));
    let first = client.lock("mutex", with(one)).await.unwrap();
    tell(
        &mut told,
        format!("{} at {}", String::from_utf8_lossy(first.key()), first.header().unwrap().revision()),
    );
    // The same lease again is the same lock.
    let again = client.lock("mutex", with(one)).await.unwrap();
    tell(
        &mut told,
        format!("{} at {}", String::from_utf8_lossy(again.key()), again.header().unwrap().revision()),
    );
    let mut other = client.clone();
    let waiting = tokio::spawn(async move { other.lock("mutex", with(two)).await });
    eventually("the second waits", async || keys(&mut client, "mutex/").await.len() == 2).await;
    assert!(!waiting.is_finished());
    let unlocked = client.unlock(first.key()).await.unwrap();
    tell(&mut told, format!("unlocked at {}", unlocked.header().unwrap().revision()));
    let second = waiting.await.unwrap().unwrap();
    tell(
        &mut told,
        format!("{} at {}", String::from_utf8_lossy(second.key()), second.header().unwrap().revision()),
    );
    // A lock goes with its lease.
    let mut other = client.clone();
    let waiting = tokio::spawn(async move { other.lock("mutex", with(one)).await });
    eventually("the first waits", async || keys(&mut client, "mutex/").await.len() == 2).await;
    client.lease_revoke(two).await.unwrap();
    let third = waiting.await.unwrap().unwrap();
    tell(&mut told, String::from_utf8_lossy(third.key()).into_owned());
    // A lease that is not there.
    tell(&mut told, format!("{:?}", refusal(client.lock("mutex", with(99)).await)));
    tell(&mut told, format!("{:?}", client.unlock("nothing").await.unwrap().header().unwrap().revision()));
    tell(&mut told, keys(&mut client, "mutex/").await.join(" "));
    // Without a lease it gets one of its own.
    let own = client.lock("alone", None).await.unwrap();
    assert!(own.key().starts_with(b"alone/"), "{own:?}");
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_are_etcds() {
    let told = on_both!(locking);
    assert_eq!(told[0], "mutex/11 at 2");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_gives_up_a_lock_leaves_no_key() {
    let fixture = Fixture::start().await;
    let mut client = fixture.client().await;
    let held = client.lock("mutex", None).await.unwrap();
    let mut other = connect_apart(&fixture).await;
    let waiting = tokio::spawn(async move { other.lock("mutex", None).await });
    eventually("the second waits", async || keys(&mut client, "mutex/").await.len() == 2).await;
    waiting.abort();
    eventually("its key is gone", async || keys(&mut client, "mutex/").await.len() == 1).await;
    client.unlock(held.key()).await.unwrap();
    soon(client.lock("mutex", None)).await.unwrap();
}

async fn connect_apart(fixture: &Fixture) -> Client {
    crate::connect(&fixture.hub).await
}

fn leader(campaign: &CampaignResponse) -> LeaderKey {
    campaign.leader().unwrap().clone()
}

async fn electing(address: String) -> Vec<String> {
    let mut client = client(&address).await;
    let mut told = Vec::new();
    tell(&mut told, format!("{:?}", refusal(client.leader("e").await)));
    let (one, two) = (lease(&mut client, 0x11).await, lease(&mut client, 0xf2).await);
    let first = client.campaign("e", "a", one).await.unwrap();
    // Only now: etcd answers an observer at its first word.
    let mut observed = client.observe("e").await.unwrap();
    tell(&mut told, format!("{:?} at {}", leader(&first), first.header().unwrap().revision()));
    let heard = observed.message().await.unwrap().unwrap();
    tell(&mut told, format!("{:?} at {}", heard.kv(), heard.header().unwrap().revision()));
    let mut other = client.clone();
    let waiting = tokio::spawn(async move { other.campaign("e", "b", two).await });
    eventually("the second stands", async || keys(&mut client, "e/").await.len() == 2).await;
    // Campaigning again with another value proclaims it.
    let again = client.campaign("e", "a2", one).await.unwrap();
    tell(&mut told, format!("{:?} at {}", leader(&again).rev(), keys(&mut client, "e/").await.join(" ")));
    let with = |leader: LeaderKey| Some(ProclaimOptions::new().with_leader(leader));
    let proclaimed = client.proclaim("a3", with(leader(&first))).await.unwrap();
    tell(&mut told, format!("proclaimed at {}", proclaimed.header().unwrap().revision()));
    let led = client.leader("e").await.unwrap();
    tell(&mut told, format!("{:?} at {}", led.kv(), led.header().unwrap().revision()));
    for _ in 0..2 {
        let heard = observed.message().await.unwrap().unwrap();
        tell(&mut told, format!("heard {:?} at {}", heard.kv(), heard.header().unwrap().revision()));
    }
    let resigned = client.resign(Some(ResignOptions::new().with_leader(leader(&first)))).await.unwrap();
    tell(&mut told, format!("resigned at {}", resigned.header().unwrap().revision()));
    let second = waiting.await.unwrap().unwrap();
    tell(&mut told, format!("{:?}", leader(&second)));
    let heard = observed.message().await.unwrap().unwrap();
    tell(&mut told, format!("heard {:?}", heard.kv()));
    tell(&mut told, format!("{:?}", refusal(client.proclaim("late", with(leader(&first))).await)));
    tell(&mut told, format!("{:?}", refusal(client.proclaim("nobody", None).await)));
    tell(&mut told, format!("{:?}", refusal(client.resign(None).await)));
    tell(&mut told, format!("{:?}", refusal(client.campaign("e", "x", 99).await)));
    let again = client.resign(Some(ResignOptions::new().with_leader(leader(&first)))).await.unwrap();
    tell(&mut told, format!("nothing to resign at {}", again.header().unwrap().revision()));
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn elections_are_etcds() {
    let told = on_both!(electing);
    assert_eq!(told[0], format!("{:?}", (Code::Unknown, "election: no leader".to_owned())));
}

/// Also printed, so that a story that hangs shows how far it came.
fn tell(told: &mut Vec<String>, what: String) {
    println!("{what}");
    told.push(what);
}
