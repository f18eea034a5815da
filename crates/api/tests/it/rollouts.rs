//! Updates, answered by the cluster in memory: they are done at once.

use crate::{
    memory::{Memory, serve},
    raw::ask,
};
use api::{
    ApiError, Client, Endpoint,
    rollouts::{
        Command, History, Rollout, RolloutCommand, RolloutList, RolloutOrder, RolloutUnit, Rollouts, Version,
    },
};
use futures_util::StreamExt;
use model::{Progress, RolloutState, Timestamp, UnitName};
use tokio::sync::mpsc;

fn rollout(name: UnitName, state: RolloutState) -> Rollout {
    let progress = if state.is_active() { Progress::Updating } else { Progress::Ready };
    let unit = RolloutUnit { unit: name.clone(), progress, machine: "m1".to_owned(), message: String::new() };
    Rollout {
        name,
        hash: "abc".to_owned(),
        state,
        message: String::new(),
        at_once: 1,
        by: "root".to_owned(),
        at: Timestamp(1),
        units: vec![unit],
    }
}

impl Rollouts for Memory {
    async fn history(&self, unit: UnitName) -> Result<History, ApiError> {
        drop(self.inner()?);
        let version = |number, replaced| Version {
            number,
            hash: "abc".to_owned(),
            text: "[Service]".to_owned(),
            replaced,
            by: String::new(),
        };
        Ok(History { unit, versions: vec![version(1, Some(Timestamp(1))), version(2, None)] })
    }

    async fn rollouts(&self) -> Result<RolloutList, ApiError> {
        drop(self.inner()?);
        let name = "a.service".parse().expect("a name");
        Ok(RolloutList { rollouts: vec![rollout(name, RolloutState::Done)] })
    }

    async fn roll(&self, order: RolloutOrder) -> Result<Rollout, ApiError> {
        drop(self.inner()?);
        // What is left out has its default.
        assert_eq!((order.at_once, order.ready_timeout, order.settle), (1, 60_000, 2_000));
        assert!(order.rollback);
        Ok(rollout(order.name, RolloutState::Running))
    }

    async fn direct(&self, name: UnitName, command: RolloutCommand) -> Result<Rollout, ApiError> {
        drop(self.inner()?);
        let state = match command.command {
            Command::Pause => RolloutState::Paused,
            Command::Resume => RolloutState::Running,
            Command::Abort => RolloutState::RollingBack,
        };
        Ok(rollout(name, state))
    }

    async fn watch_rollout(&self, name: UnitName) -> Result<mpsc::Receiver<Rollout>, ApiError> {
        drop(self.inner()?);
        let (sender, receiver) = mpsc::channel(2);
        for state in [RolloutState::Running, RolloutState::Done] {
            sender.try_send(rollout(name.clone(), state)).expect("there is room");
        }
        Ok(receiver)
    }
}

#[tokio::test]
async fn a_client_sees_an_update_through() {
    let server = serve().await;
    let client = Client::new(Endpoint::Tcp(server.tcp));
    let name: UnitName = "web@.service".parse().expect("a name");
    let order = RolloutOrder {
        name: name.clone(),
        text: None,
        version: Some(1),
        at_once: 1,
        ready_timeout: 60_000,
        settle: 2_000,
        rollback: true,
        by: String::new(),
    };
    assert_eq!(client.roll(&order).await.expect("begun").state, RolloutState::Running);
    let watch = client.watch_rollout(&name).await.expect("watched");
    let states: Vec<_> = watch.map(|rollout| rollout.expect("readable").state).collect().await;
    assert_eq!(states, [RolloutState::Running, RolloutState::Done]);
    let command = RolloutCommand { command: Command::Pause, by: String::new() };
    assert_eq!(client.direct(&name, &command).await.expect("paused").state, RolloutState::Paused);
    let history = client.history(&name).await.expect("known");
    assert_eq!(history.versions.iter().map(|version| version.number).collect::<Vec<_>>(), [1, 2]);
}

#[tokio::test]
async fn what_is_no_update_is_said() {
    let server = serve().await;
    let socket = &server.sockets[0];
    let unknown = ask(socket, "GET", "/v1/rollouts/b.service", &[], "").await;
    assert_eq!(unknown.status, 404, "{unknown:?}");
    let wrong = ask(socket, "POST", "/v1/rollouts/a.service", &[], r#"{"command":"hurry"}"#).await;
    assert_eq!(wrong.status, 400, "{wrong:?}");
    server.memory.hub_is_away(true);
    let away = ask(socket, "POST", "/v1/rollouts", &[], r#"{"name":"a.service"}"#).await;
    assert_eq!(away.status, 503, "{away:?}");
}
