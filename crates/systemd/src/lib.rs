//! systemd over D-Bus: unit files linked, jobs queued, states and job results reported as they happen.
//!
//! About a dozen methods and four signals of `org.freedesktop.systemd1` (see org.freedesktop.systemd1(5)), no
//! more. No decisions here: what to start and when is `core::agent`'s. Invariant: every call has a deadline.

/// Names of units as D-Bus object paths.
mod path;
/// The D-Bus interface.
mod proxy;

use futures_util::StreamExt;
use model::UnitName;
use proxy::ManagerProxy;
use std::{collections::HashMap, future::Future, num::NonZero, path::Path, time::Duration};
use tokio::sync::mpsc;
use tracing::warn;
use zbus::{Connection, MatchRule, MessageStream, OwnedObjectPath, Variant, message::Type};

/// Queueing a job takes milliseconds; a daemon-reload on a big machine seconds.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Signals waiting to be taken. systemd sends a few per state change; a reader this far behind loses some, and
/// its regular full listing makes up for it.
const SIGNAL_BUFFER: usize = 4096;
/// Between the end of a transient service and its next start.
const TRANSIENT_AGAIN: Duration = Duration::from_millis(100);
/// systemd takes signals by number.
const SIGKILL: i32 = 9;

/// A connection to the machine's systemd.
#[derive(Clone)]
pub struct Systemd {
    connection: Connection,
    manager: ManagerProxy<'static>,
}

/// Why systemd did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum SystemdError {
    /// No connection to the system bus.
    #[error("the system bus cannot be reached")]
    Bus(#[source] zbus::Error),
    /// systemd answered no.
    #[error("systemd refused to {action}: {reason}")]
    Refused {
        /// What was asked of it.
        action: String,
        /// What it said.
        reason: String,
    },
    /// No answer.
    #[error("systemd did not {action} within {} s", CALL_TIMEOUT.as_secs())]
    Timeout {
        /// What was asked of it.
        action: String,
    },
}

/// A unit's state in systemd's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// `loaded`, `not-found`…
    pub load: String,
    /// `active`, `inactive`…
    pub active: String,
    /// `running`, `dead`…
    pub sub: String,
}

/// What systemd reports on its own. Two reports may come in another order than they were sent in, and after an answer
/// that is newer: what a report says is a reason to ask, and not the truth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A unit's state changed; absent parts did not.
    State {
        /// Which unit.
        unit: UnitName,
        /// Its new load state.
        load: Option<String>,
        /// Its new active state.
        active: Option<String>,
        /// Its new sub-state.
        sub: Option<String>,
    },
    /// A job ended: `done`, `failed`, `canceled`, `timeout`, `dependency`, `skipped`.
    Job {
        /// Which job, as [`Systemd::start`] and [`Systemd::stop`] give it.
        id: u32,
        /// Which unit's job.
        unit: UnitName,
        /// How it ended.
        result: String,
    },
    /// All unit files were read anew, whoever asked for it.
    Reloaded,
    /// systemd forgot a unit: it is inactive and nothing refers to it.
    Gone {
        /// Which unit.
        unit: UnitName,
    },
}

impl Systemd {
    /// Connects to the system bus, asks systemd for its signals, and gives them in order.
    pub async fn connect() -> Result<(Self, mpsc::Receiver<Event>), SystemdError> {
        let connection = Connection::system().await.map_err(SystemdError::Bus)?;
        let manager = ManagerProxy::new(&connection).await.map_err(SystemdError::Bus)?;
        let signals = || MatchRule::builder().msg_type(Type::Signal).sender("org.freedesktop.systemd1");
        let properties =
            signals().interface("org.freedesktop.DBus.Properties").path_namespace(path::NAMESPACE).build();
        let jobs = signals().interface("org.freedesktop.systemd1.Manager").build();
        let buffer = NonZero::new(SIGNAL_BUFFER);
        let properties =
            MessageStream::for_match_rule(properties.map_err(SystemdError::Bus)?, &connection, buffer)
                .await
                .map_err(SystemdError::Bus)?;
        let jobs = MessageStream::for_match_rule(jobs.map_err(SystemdError::Bus)?, &connection, buffer)
            .await
            .map_err(SystemdError::Bus)?;
        let (sender, events) = mpsc::channel(SIGNAL_BUFFER);
        tokio::spawn(forward(properties, jobs, sender));
        let systemd = Self { connection, manager };
        systemd.call("send signals", systemd.manager.subscribe()).await?;
        Ok((systemd, events))
    }

    async fn call<T>(
        &self,
        action: impl Into<String>,
        call: impl Future<Output = zbus::Result<T>>,
    ) -> Result<T, SystemdError> {
        let action = action.into();
        match tokio::time::timeout(CALL_TIMEOUT, call).await {
            Err(_) => Err(SystemdError::Timeout { action }),
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(zbus::Error::MethodError(_, Some(reason), _))) => {
                Err(SystemdError::Refused { action, reason })
            }
            Ok(Err(error)) => Err(SystemdError::Refused { action, reason: error.to_string() }),
        }
    }

    /// Makes unit files outside systemd's directories known until the next boot. Existing links are replaced.
    pub async fn link(&self, files: &[&Path]) -> Result<(), SystemdError> {
        let files: Vec<_> = files.iter().filter_map(|file| file.to_str()).collect();
        self.call("link unit files", self.manager.link_unit_files(&files, true, true)).await.map(drop)
    }

    /// Makes the links that `[Install]` of these units asks for, until the next boot: `systemctl enable --runtime`.
    pub async fn enable(&self, units: &[&UnitName]) -> Result<(), SystemdError> {
        let names: Vec<_> = units.iter().map(|unit| unit.as_str()).collect();
        self.call("enable unit files", self.manager.enable_unit_files(&names, true, true)).await.map(drop)
    }

    /// Removes links that [`Systemd::link`] and [`Systemd::enable`] made.
    pub async fn unlink(&self, units: &[&UnitName]) -> Result<(), SystemdError> {
        let names: Vec<_> = units.iter().map(|unit| unit.as_str()).collect();
        self.call("unlink unit files", self.manager.disable_unit_files(&names, true)).await.map(drop)
    }

    /// Reads all unit files anew: `systemctl daemon-reload`.
    pub async fn reload(&self) -> Result<(), SystemdError> {
        self.call("reload unit files", self.manager.reload()).await
    }

    /// Queues a start and gives the job's number. Its result comes as [`Event::Job`], perhaps before the number.
    pub async fn start(&self, unit: &UnitName) -> Result<u32, SystemdError> {
        let start = self.manager.start_unit(unit.as_str(), "replace");
        Ok(path::job(&self.call(format!("start {unit}"), start).await?))
    }

    /// Queues a stop, as [`Systemd::start`] a start.
    pub async fn stop(&self, unit: &UnitName) -> Result<u32, SystemdError> {
        let stop = self.manager.stop_unit(unit.as_str(), "replace");
        Ok(path::job(&self.call(format!("stop {unit}"), stop).await?))
    }

    /// Starts a service of our own that has no file and outlives this process. systemd starts it again whenever it
    /// ends, kills it when it is silent for longer than `watchdog`, and lets it be the last to go when memory is
    /// short. That it runs already is fine.
    pub async fn run_transient(
        &self,
        unit: &UnitName,
        description: &str,
        command: &[&str],
        watchdog: Duration,
    ) -> Result<(), SystemdError> {
        let program = command.first().copied().unwrap_or_default();
        let again = u64::try_from(TRANSIENT_AGAIN.as_micros()).unwrap_or_default();
        let properties = [
            ("Description", Variant::from(description)),
            ("ExecStart", Variant::new(vec![(program, command.to_vec(), false)])),
            ("Type", Variant::from("notify")),
            ("NotifyAccess", Variant::from("main")),
            ("Restart", Variant::from("always")),
            ("RestartUSec", Variant::from(again)),
            ("StartLimitIntervalUSec", Variant::from(0_u64)),
            ("WatchdogUSec", Variant::from(u64::try_from(watchdog.as_micros()).unwrap_or(u64::MAX))),
            ("WatchdogSignal", Variant::from(SIGKILL)),
            ("OOMScoreAdjust", Variant::from(-1000_i32)),
            ("CollectMode", Variant::from("inactive-or-failed")),
        ];
        let start = self.manager.start_transient_unit(unit.as_str(), "replace", &properties, &[]);
        match self.call(format!("start {unit}"), start).await {
            // "Unit … was already loaded or has a fragment file."
            Err(SystemdError::Refused { reason, .. }) if reason.contains("already") => {
                self.start(unit).await.map(drop)
            }
            other => other.map(drop),
        }
    }

    /// Makes systemd forget that a unit failed, so that it can be unloaded. A unit that is not loaded is fine.
    pub async fn reset_failed(&self, unit: &UnitName) -> Result<(), SystemdError> {
        match self.call(format!("reset {unit}"), self.manager.reset_failed_unit(unit.as_str())).await {
            Err(SystemdError::Refused { reason, .. }) if reason.contains("not loaded") => Ok(()),
            other => other,
        }
    }

    /// The states of `units`, all read at once.
    pub async fn states(&self, units: &[&UnitName]) -> Result<HashMap<UnitName, State>, SystemdError> {
        let names: Vec<_> = units.iter().map(|unit| unit.as_str()).collect();
        let found = self.call("list units", self.manager.list_units_by_names(&names)).await?;
        let state = |unit: proxy::ListedUnit| {
            let name = unit.name.parse().ok()?;
            Some((name, State { load: unit.load_state, active: unit.active_state, sub: unit.sub_state }))
        };
        Ok(found.into_iter().filter_map(state).collect())
    }

    /// The pid of the unit's main process.
    pub async fn main_pid(&self, unit: &UnitName) -> Result<Option<u32>, SystemdError> {
        let service = proxy::ServiceProxy::builder(&self.connection)
            .path(path::of(unit))
            .build()
            .await
            .map_err(SystemdError::Bus)?;
        let pid = self.call(format!("tell the pid of {unit}"), service.main_pid()).await?;
        Ok((pid != 0).then_some(pid))
    }

    /// Waits until the whole machine shuts down; systemd tells it before it stops anything.
    pub async fn shutdown(&self) -> Result<(), SystemdError> {
        let rule = MatchRule::builder()
            .msg_type(Type::Signal)
            .sender("org.freedesktop.systemd1")
            .interface("org.freedesktop.systemd1.Manager")
            .member("JobNew")
            .arg(2, "shutdown.target")
            .build()
            .map_err(SystemdError::Bus)?;
        let stream = MessageStream::for_match_rule(rule, &self.connection, NonZero::new(1));
        let mut jobs = stream.await.map_err(SystemdError::Bus)?;
        // It may have begun before the signal was asked for. A job of that name can also be one to stop it.
        while !self.is_stopping().await {
            if jobs.next().await.is_none() {
                return std::future::pending().await;
            }
        }
        Ok(())
    }

    /// True while the whole machine shuts down.
    pub async fn is_stopping(&self) -> bool {
        matches!(self.call("tell its state", self.manager.system_state()).await.as_deref(), Ok("stopping"))
    }
}

/// Turns D-Bus signals into events until nobody listens any more.
async fn forward(mut properties: MessageStream, mut jobs: MessageStream, sender: mpsc::Sender<Event>) {
    loop {
        let message = tokio::select! {
            message = properties.next() => message,
            message = jobs.next() => message,
        };
        let Some(message) = message else { return };
        let Ok(message) = message else { continue };
        if let Some(event) = read(&message)
            && sender.send(event).await.is_err()
        {
            return;
        }
    }
}

fn read(message: &zbus::Message) -> Option<Event> {
    let header = message.header();
    let body = message.body();
    match header.member()?.as_str() {
        "PropertiesChanged" => {
            let unit = path::unit(header.path()?.as_str())?;
            let (interface, changed, _): (String, HashMap<String, Variant<'_>>, Vec<String>) =
                body.deserialize().map_err(|error| warn!(%error, "unreadable signal")).ok()?;
            if interface != "org.freedesktop.systemd1.Unit" {
                return None;
            }
            let text = |name: &str| match changed.get(name) {
                Some(Variant::Str(text)) => Some(text.to_string()),
                _ => None,
            };
            let (load, active, sub) = (text("LoadState"), text("ActiveState"), text("SubState"));
            (load.is_some() || active.is_some() || sub.is_some()).then_some(Event::State {
                unit,
                load,
                active,
                sub,
            })
        }
        "JobRemoved" => {
            let (id, _, unit, result): (u32, OwnedObjectPath, String, String) =
                body.deserialize().map_err(|error| warn!(%error, "unreadable signal")).ok()?;
            Some(Event::Job { id, unit: unit.parse().ok()?, result })
        }
        "Reloading" => {
            // Sent with `true` when it begins, with `false` when it has ended.
            let begins: bool = body.deserialize().ok()?;
            (!begins).then_some(Event::Reloaded)
        }
        "UnitRemoved" => {
            let (unit, _): (String, OwnedObjectPath) = body.deserialize().ok()?;
            Some(Event::Gone { unit: unit.parse().ok()? })
        }
        _ => None,
    }
}
