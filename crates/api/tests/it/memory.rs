//! A cluster of two machines in memory. It obeys at once, which is the hardest case for clients that were written
//! for a slow one, or takes its time to stop, if told to.

use crate::raw::Socket;
use api::{
    ApiError, Place, Service,
    fleet::MetadataChange,
    frames::Frame,
    types::{
        Machine, MachineList, MachineMaintenance, Run, Shell, State, Unit, UnitChange, UnitChanged, UnitList,
        UnitOnMachine, UnitsChanged, Watched,
    },
};
use model::{DesiredState, MachineId, Metadata, Revision, UnitName};
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

pub const IDS: [&str; 2] = ["0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210"];

#[derive(Clone)]
struct Known {
    text: String,
    desired: DesiredState,
    launch: u64,
    started: u64,
    /// When it stops; `None` while it runs.
    stops: Option<Instant>,
}

#[derive(Default)]
pub(crate) struct Inner {
    units: BTreeMap<UnitName, Known>,
    metadata: BTreeMap<MachineId, BTreeMap<String, Option<String>>>,
    pub(crate) maintenance: BTreeMap<MachineId, MachineMaintenance>,
    stop_takes: Duration,
    hub_away: bool,
    writes: u32,
    other: Option<SocketAddr>,
}

#[derive(Clone, Default)]
pub struct Memory(Arc<Mutex<Inner>>);

impl Memory {
    pub(crate) fn inner(&self) -> Result<MutexGuard<'_, Inner>, ApiError> {
        let inner = self.0.lock().expect("no test panics while it holds this");
        if inner.hub_away { Err(ApiError::unavailable("the hub is away")) } else { Ok(inner) }
    }

    fn set(&self, set: impl FnOnce(&mut Inner)) {
        set(&mut self.0.lock().expect("no test panics while it holds this"));
    }

    pub fn hub_is_away(&self, away: bool) {
        self.set(|inner| inner.hub_away = away);
    }

    pub fn stop_takes(&self, time: Duration) {
        self.set(|inner| inner.stop_takes = time);
    }

    /// The second machine's API is there.
    pub fn other_is(&self, address: SocketAddr) {
        self.set(|inner| inner.other = Some(address));
    }

    /// How often anything was changed.
    pub fn writes(&self) -> u32 {
        self.0.lock().expect("no test panics while it holds this").writes
    }

    /// How often the unit really started.
    pub fn starts(&self, name: &str) -> u64 {
        let inner = self.0.lock().expect("no test panics while it holds this");
        inner.units[&name.parse::<UnitName>().expect("a name")].started
    }
}

pub fn id(number: usize) -> MachineId {
    IDS[number].parse().expect("valid")
}

fn view(name: &UnitName, known: &Known) -> Unit {
    let file = unit::check(name, &known.text).expect("it was checked");
    let hash = file.file.hash();
    let running = known.started > 0 && known.stops.is_none_or(|at| at > Instant::now());
    let on = |number: usize| UnitOnMachine {
        id: id(number),
        name: format!("m{}", number + 1),
        address: Some([10, 0, 0, 1 + u8::try_from(number).expect("small")].into()),
        scheduled: true,
        why: String::new(),
        state: Some(State {
            load: "loaded".to_owned(),
            active: if running { "active" } else { "inactive" }.to_owned(),
            sub: if running { "running" } else { "dead" }.to_owned(),
            hash: hash.clone(),
            launch: known.launch,
            error: None,
        }),
    };
    let global = file.requirements.global;
    let machines = match known.desired {
        DesiredState::Inactive => Vec::new(),
        // The second first: what is answered is ordered anew.
        _ if global => vec![on(1), on(0)],
        _ => vec![on(0)],
    };
    Unit {
        name: name.clone(),
        hash: hash.clone(),
        text: known.text.clone(),
        desired: known.desired,
        launch: known.launch,
        global,
        machines,
        refused: BTreeMap::new(),
    }
}

impl api::Discovery for Memory {
    async fn targets(&self) -> Result<Vec<api::discovery::Target>, ApiError> {
        let _there = self.inner()?;
        let labels = [("__meta_muster_service", "a"), ("instance", "a@1"), ("__metrics_path__", "/metrics")];
        let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        Ok(vec![api::discovery::Target { targets: vec!["10.1.5.2:3000".to_owned()], labels }])
    }
}

impl Service for Memory {
    async fn machines(&self) -> Result<MachineList, ApiError> {
        let inner = self.inner()?;
        let machine = |number: usize| {
            let mut metadata: Metadata = [("region".to_owned(), "eu".to_owned())].into();
            for (key, value) in inner.metadata.get(&id(number)).into_iter().flatten() {
                match value {
                    Some(value) => metadata.insert(key.clone(), value.clone()),
                    None => metadata.remove(key),
                };
            }
            Machine {
                id: id(number),
                name: format!("m{}", number + 1),
                address: [10, 0, 0, 1 + u8::try_from(number).expect("small")].into(),
                subnet: None,
                metadata,
                maintenance: inner.maintenance.get(&id(number)).cloned(),
                version: "1".to_owned(),
            }
        };
        Ok(MachineList { revision: Revision(1), machines: (0..2).map(machine).collect() })
    }

    async fn units(&self) -> Result<UnitList, ApiError> {
        let inner = self.inner()?;
        let units = inner.units.iter().map(|(name, known)| view(name, known)).collect();
        Ok(UnitList { revision: Revision(1), units })
    }

    async fn unit(&self, name: &UnitName) -> Result<Option<Unit>, ApiError> {
        Ok(self.inner()?.units.get(name).map(|known| view(name, known)))
    }

    async fn change_metadata(&self, changes: Vec<MetadataChange>) -> Result<(), ApiError> {
        let mut inner = self.inner()?;
        inner.writes += 1;
        for change in changes {
            inner.metadata.entry(change.machine).or_default().insert(change.key, change.value);
        }
        Ok(())
    }

    async fn change(&self, changes: Vec<UnitChange>) -> Result<UnitsChanged, ApiError> {
        let mut inner = self.inner()?;
        let stop_takes = inner.stop_takes;
        for change in &changes {
            match &change.text {
                Some(text) => {
                    unit::check(&change.name, text)
                        .map_err(|problem| ApiError::bad_request(problem.render(&change.name.to_string())))?;
                }
                None if inner.units.contains_key(&change.name) => {}
                None => return Err(ApiError::not_found(format!("unit {} does not exist", change.name))),
            }
        }
        let mut units = Vec::new();
        for change in changes {
            let name = change.name;
            let wanted = change.desired.unwrap_or_default();
            if name.is_template() && wanted != DesiredState::Inactive {
                return Err(ApiError::bad_request(format!("cannot activate template \"{name}\"")));
            }
            let fresh = || Known {
                text: String::new(),
                desired: DesiredState::Inactive,
                launch: 0,
                started: 0,
                stops: None,
            };
            let known = inner.units.entry(name.clone()).or_insert_with(fresh);
            let (created, before) = (known.text.is_empty(), known.desired);
            if let Some(text) = change.text {
                known.text = text;
            }
            known.desired = wanted;
            let now = Instant::now();
            let running = known.started > 0 && known.stops.is_none_or(|at| at > now);
            if wanted == DesiredState::Launched {
                known.launch += 1;
                // A start of what runs, and was not yet told to stop, is no start; what is stopping starts after.
                if !running || known.stops.is_some() {
                    known.started += 1;
                }
                known.stops = None;
            } else if running && known.stops.is_none() {
                known.stops = Some(now + stop_takes);
            }
            units.push(UnitChanged { name, created, before, desired: wanted, warnings: Vec::new() });
        }
        inner.writes += 1;
        Ok(UnitsChanged { revision: Revision(1), units })
    }

    async fn destroy(&self, units: Vec<UnitName>) -> Result<UnitsChanged, ApiError> {
        let mut inner = self.inner()?;
        for name in &units {
            inner
                .units
                .remove(name)
                .ok_or_else(|| ApiError::not_found(format!("unit {name} does not exist")))?;
        }
        inner.writes += 1;
        Ok(UnitsChanged { revision: Revision(1), units: Vec::new() })
    }

    async fn watch(&self, units: Vec<UnitName>) -> Result<mpsc::Receiver<Watched>, ApiError> {
        let (sender, receiver) = mpsc::channel(16);
        let memory = self.clone();
        tokio::spawn(async move {
            loop {
                for name in &units {
                    let Ok(unit) = memory.unit(name).await else { return };
                    let watched = Watched { name: name.clone(), unit, leftover: Vec::new() };
                    if sender.send(watched).await.is_err() {
                        return;
                    }
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        Ok(receiver)
    }

    async fn locate(&self, _: &UnitName) -> Result<Place, ApiError> {
        Ok(Place::Here)
    }

    async fn place(&self, machine: &MachineId) -> Result<Place, ApiError> {
        match (IDS.iter().position(|id| *id == machine.as_str()), self.inner()?.other) {
            (Some(0), _) => Ok(Place::Here),
            (Some(1), Some(other)) => Ok(Place::There(other)),
            _ => Err(ApiError::not_found(format!("machine {machine} is not present"))),
        }
    }

    async fn run(&self, unit: UnitName, run: Run) -> Result<mpsc::Receiver<Frame>, ApiError> {
        let (sender, receiver) = mpsc::channel(2);
        let text = format!("{unit}: {run:?}\n");
        sender.send(Frame::Stdout(text.into())).await.expect("there is room");
        sender.send(Frame::Exit(0)).await.expect("there is room");
        Ok(receiver)
    }

    /// A shell that repeats what it is told; `stop` ends it.
    async fn shell(
        &self,
        shell: Shell,
        mut input: mpsc::Receiver<Frame>,
    ) -> Result<mpsc::Receiver<Frame>, ApiError> {
        let (sender, receiver) = mpsc::channel(8);
        tokio::spawn(async move {
            let hello = Frame::Stdout(format!("{:?}", shell.command).into());
            let _ = sender.send(hello).await;
            while let Some(frame) = input.recv().await {
                let frame = match frame {
                    Frame::Stdin(bytes) if bytes.as_ref() == b"stop" => Frame::Exit(4),
                    Frame::Stdin(bytes) => Frame::Stdout(bytes),
                    Frame::Size(rows, columns) => Frame::Stderr(format!("{rows}x{columns}").into()),
                    other => panic!("{other:?} is no input"),
                };
                let over = matches!(frame, Frame::Exit(_));
                if sender.send(frame).await.is_err() || over {
                    return;
                }
            }
        });
        Ok(receiver)
    }
}

/// Serves the memory on a port of the loopback and on a socket in a directory; ends when dropped.
pub struct Server {
    pub memory: Memory,
    pub tcp: SocketAddr,
    pub sockets: [Socket; 2],
    _directory: tempfile::TempDir,
    _stop: DropGuard,
}

pub async fn serve() -> Server {
    let memory = Memory::default();
    let stop = CancellationToken::new();
    let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = tcp.local_addr().expect("bound");
    tokio::spawn(api::serve(memory.clone(), tcp, stop.clone()));
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("fleet.sock");
    let unix = tokio::net::UnixListener::bind(&path).expect("a socket");
    tokio::spawn(api::serve(memory.clone(), unix, stop.clone()));
    let sockets = [Socket::Tcp(address), Socket::Unix(path)];
    Server { memory, tcp: address, sockets, _directory: directory, _stop: stop.drop_guard() }
}
