//! What fleetctl 1.0 asks of the API, and in which order, as read off its behaviour: whole verbs, its polling every
//! 250 ms included, against a cluster that obeys at once and against one that takes its time.

use crate::{
    memory::{Server, serve},
    raw::{Socket, ask},
};
use serde_json::Value;
use std::time::Duration;

const POLL: Duration = Duration::from_millis(250);
/// fleetctl would poll for ever; two seconds are its attempt.
const POLLS: u32 = 40;

struct Fleetctl<'a>(&'a Socket);

impl Fleetctl<'_> {
    async fn get(&self, path: &str) -> (u16, Value) {
        let answer = ask(self.0, "GET", &format!("/fleet/v1/{path}?alt=json"), &[], "").await;
        (answer.status, answer.json())
    }

    async fn put(&self, unit: &str, body: &str) {
        let path = format!("/fleet/v1/units/{}?alt=json", unit.replace('@', "%40"));
        let answer = ask(self.0, "PUT", &path, &["Content-Type: application/json"], body).await;
        assert!([201, 204].contains(&answer.status), "{answer:?}");
    }

    async fn want(&self, unit: &str, desired: &str) {
        self.put(unit, &format!(r#"{{"name":"{unit}","desiredState":"{desired}"}}"#)).await;
    }

    /// `checkUnitState`: false when it would go on for ever.
    async fn wait(&self, unit: &str, state: &str) -> bool {
        for _ in 0..POLLS {
            tokio::time::sleep(POLL).await;
            let (status, unit) = self.get(&format!("units/{}", unit.replace('@', "%40"))).await;
            if status == 200 && unit["currentState"] == state {
                return true;
            }
        }
        false
    }

    /// `lazyCreateUnits`
    async fn create(&self, unit: &str) {
        let (status, _) = self.get(&format!("units/{}", unit.replace('@', "%40"))).await;
        if status == 404 {
            let options = r#"[{"section":"Service","name":"ExecStart","value":"/bin/sleep infinity"}]"#;
            self.put(unit, &format!(r#"{{"name":"{unit}","desiredState":"inactive","options":{options}}}"#))
                .await;
            assert!(self.wait(unit, "inactive").await, "submit hangs");
        }
    }

    async fn start(&self, unit: &str) {
        self.create(unit).await;
        self.want(unit, "launched").await;
        assert!(self.wait(unit, "launched").await, "start hangs");
        let (status, state) = self.get(&format!("state/{}", unit.replace('@', "%40"))).await;
        assert_eq!(status, 200);
        assert_eq!(
            (&state["systemdLoadState"], &state["systemdActiveState"]),
            (&"loaded".into(), &"active".into())
        );
    }

    async fn to(&self, unit: &str, desired: &str) {
        self.want(unit, desired).await;
        assert!(self.wait(unit, desired).await, "waiting for {unit} to be {desired} hangs");
    }

    /// Both its waits wait for launched.
    async fn restart(&self, unit: &str) {
        self.want(unit, "loaded").await;
        assert!(self.wait(unit, "launched").await, "the first half of restart hangs");
        self.want(unit, "launched").await;
        assert!(self.wait(unit, "launched").await, "the second half of restart hangs");
    }

    async fn destroy(&self, unit: &str) {
        let path = format!("/fleet/v1/units/{}?alt=json", unit.replace('@', "%40"));
        assert_eq!(ask(self.0, "DELETE", &path, &[], "").await.status, 204);
        assert_eq!(self.get(&format!("units/{}", unit.replace('@', "%40"))).await.0, 404);
    }
}

async fn all_verbs(server: &Server, socket: &Socket) {
    let fleetctl = Fleetctl(socket);
    let unit = "hello@1.service";
    assert_eq!(fleetctl.get("machines").await.1["machines"].as_array().map(Vec::len), Some(2));
    fleetctl.create(unit).await;
    fleetctl.to(unit, "loaded").await;
    fleetctl.start(unit).await;
    assert_eq!(server.memory.starts(unit), 1);
    for restarted in 2..4 {
        fleetctl.restart(unit).await;
        assert_eq!(server.memory.starts(unit), restarted, "a restart that restarts nothing");
    }
    fleetctl.to(unit, "loaded").await;
    fleetctl.to(unit, "inactive").await;
    fleetctl.destroy(unit).await;
}

#[tokio::test]
async fn every_verb_works_on_a_cluster_that_obeys_at_once() {
    let server = serve().await;
    let [tcp, unix] = &server.sockets;
    all_verbs(&server, tcp).await;
    all_verbs(&server, unix).await;
}

#[tokio::test]
async fn every_verb_works_on_units_that_take_their_time_to_stop() {
    let server = serve().await;
    server.memory.stop_takes(Duration::from_millis(1500));
    all_verbs(&server, &server.sockets[0]).await;
}

#[tokio::test]
async fn a_restart_in_a_hurry_still_restarts() {
    let server = serve().await;
    server.memory.stop_takes(Duration::from_millis(300));
    let fleetctl = Fleetctl(&server.sockets[0]);
    fleetctl.start("a.service").await;
    for restarted in 2..5 {
        fleetctl.want("a.service", "loaded").await;
        fleetctl.want("a.service", "launched").await;
        assert_eq!(server.memory.starts("a.service"), restarted);
    }
}
