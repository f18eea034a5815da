//! One thread of the gateway: its runtime, its view of the table, its client connections.
//!
//! Workers share nothing but listening addresses and counters that each writes for itself, so a request takes no lock.
//! Invariant: a table is taken as a whole, between two polls; a request sees one table.

use crate::config::GatewayConfig;
use crate::control::{Phase, Served, Shared};
use crate::io::Signs;
use crate::route::Routes;
use crate::service::Service;
use crate::{serve, snapshot, tcp, upstream};
use model::ServiceName;
use muster_core::balance::Moment;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::task::Waker;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinSet, LocalSet};
use tracing::{error, warn};

/// How often connections are looked through, and the unit of their clock.
pub(crate) const TICK: Duration = Duration::from_millis(250);
/// How often endpoints that could not be reached are looked at.
const SUSPECTS: Duration = Duration::from_millis(500);

/// What a worker is asked besides its table.
pub(crate) enum Question {
    /// What do you know of your endpoints?
    Snapshot(oneshot::Sender<snapshot::WorkerState>),
}

/// What a worker needs to begin.
pub(crate) struct Begin {
    pub(crate) index: usize,
    pub(crate) shared: Arc<Shared>,
    pub(crate) served: watch::Receiver<Arc<Served>>,
    pub(crate) phase: watch::Receiver<Phase>,
    pub(crate) questions: mpsc::Receiver<Question>,
}

/// One thread's state.
pub(crate) struct Worker {
    pub(crate) index: usize,
    pub(crate) shared: Arc<Shared>,
    pub(crate) routes: RefCell<Rc<Routes<Rc<Service>>>>,
    services: RefCell<BTreeMap<ServiceName, Rc<Service>>>,
    /// No longer in the table, but something is under way.
    retired: RefCell<Vec<Rc<Service>>>,
    dice: Cell<u64>,
    /// Ticks, for what needs no more precision.
    pub(crate) clock: Arc<AtomicU32>,
    connections: RefCell<Vec<Weak<Conn>>>,
    revision: Cell<u64>,
    reported: RefCell<Vec<(ServiceName, String, u64)>>,
    /// Connections that have become tunnels.
    tunnels: Rc<Cell<usize>>,
    /// They are to end.
    over: Cell<bool>,
    told: Notify,
    /// Responses say that the connection ends with them.
    pub(crate) closing: Cell<bool>,
}

/// A client's connection, as its worker sees it.
pub(crate) struct Conn {
    pub(crate) signs: Arc<Signs>,
    pub(crate) order: Cell<Order>,
    pub(crate) waker: RefCell<Option<Waker>>,
    /// When it began to be idle, or to shake hands, in ticks.
    pub(crate) since: Cell<u32>,
    /// Bytes of it are read without knowing what they mean.
    pub(crate) http: Cell<bool>,
    /// What it had taken when it last took something, and when that was.
    pub(crate) took: Cell<(i64, u32)>,
}

/// A tunnel that is counted.
pub(crate) struct Tunnel(Rc<Cell<usize>>);

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

/// What a connection shall do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Order {
    #[default]
    GoOn,
    /// End after what is under way.
    Finish,
    /// End now.
    Stop,
}

impl Conn {
    /// When the client was last given, or took, a part of what it is owed.
    fn took(&self, now: u32) -> u32 {
        let taken = self.signs.taken.load(Relaxed);
        let (before, at) = self.took.get();
        // Less than that is not what anybody asks for.
        let at = if taken > before + 1024 { now } else { at };
        self.took.set((if at == now { taken } else { before.min(taken) }, at));
        at.max(self.signs.given.load(Relaxed))
    }

    pub(crate) fn order(&self, order: Order) {
        if self.order.get() != order {
            self.order.set(order);
            if let Some(waker) = self.waker.borrow_mut().take() {
                waker.wake();
            }
        }
    }
}

impl Worker {
    /// The time, as balancers have it.
    pub(crate) fn now(&self) -> Moment {
        self.shared.start.elapsed()
    }

    pub(crate) fn config(&self) -> &GatewayConfig {
        &self.shared.config
    }

    /// 64 random bits (wyrand).
    pub(crate) fn roll(&self) -> u64 {
        let state = self.dice.get().wrapping_add(0xa076_1d64_78bd_642f);
        self.dice.set(state);
        let product = u128::from(state) * u128::from(state ^ 0xe703_7ed1_a0b4_28db);
        (product >> 64) as u64 ^ product as u64
    }

    pub(crate) fn service(&self, name: &ServiceName) -> Option<Rc<Service>> {
        self.services.borrow().get(name).cloned()
    }

    pub(crate) fn enter(&self, conn: &Rc<Conn>) {
        self.connections.borrow_mut().push(Rc::downgrade(conn));
    }

    /// Takes a table.
    fn apply(self: &Rc<Self>, served: &Served) {
        let now = self.now();
        let table = &served.table;
        {
            let mut services = self.services.borrow_mut();
            let gone: Vec<_> =
                services.keys().filter(|name| !table.services.contains_key(name)).cloned().collect();
            for service in gone.iter().filter_map(|name| services.remove(name)) {
                service.retire(now);
                self.retired.borrow_mut().push(service);
            }
            for (name, entry) in &table.services {
                let service =
                    services.entry(name.clone()).or_insert_with(|| Rc::new(Service::new(name.clone(), self)));
                service.update(now, entry);
            }
            let routes = Routes::new(table, &self.config().zone, |name| services.get(name).cloned());
            *self.routes.borrow_mut() = Rc::new(routes);
        }
        self.revision.set(served.revision);
        self.report_anyway();
    }

    /// Tells what is under way at endpoints that drain, if that has changed.
    pub(crate) fn report(&self) {
        let draining = self.draining();
        if *self.reported.borrow() != draining {
            self.shared.report(self.index, self.revision.get(), &draining);
            *self.reported.borrow_mut() = draining;
        }
    }

    fn report_anyway(&self) {
        let draining = self.draining();
        self.shared.report(self.index, self.revision.get(), &draining);
        *self.reported.borrow_mut() = draining;
    }

    fn draining(&self) -> Vec<(ServiceName, String, u64)> {
        let services = self.services.borrow();
        let retired = self.retired.borrow();
        let all = services.values().chain(retired.iter());
        all.flat_map(|service| {
            service.draining().into_iter().map(|(instance, count)| (service.name.clone(), instance, count))
        })
        .collect()
    }

    /// Looks through connections and idle pools.
    fn tick(&self) {
        let now = self.clock.load(Relaxed).wrapping_add(1);
        self.clock.store(now, Relaxed);
        let limits = &self.config().limits;
        let ticks = |time: Duration| (time.as_millis() / TICK.as_millis()) as u32 + 1;
        let (head, idle) = (ticks(limits.header_timeout), ticks(limits.idle_timeout));
        let older = |since: u32, limit: u32| since != 0 && now.wrapping_sub(since) > limit;
        self.connections.borrow_mut().retain(|conn| {
            let Some(conn) = conn.upgrade() else { return false };
            let signs = &conn.signs;
            let late = if !conn.http.get() {
                false // a tunnel, with a limit of its own
            } else if signs.active.load(Relaxed) == 0 {
                older(signs.head.load(Relaxed), head)
                    || older(conn.since.get().max(signs.read.load(Relaxed)), idle)
            } else {
                (signs.body.load(Relaxed) && older(signs.read.load(Relaxed), idle))
                    || older(signs.stuck.load(Relaxed), idle)
                    || (signs.owed.load(Relaxed) > 0 && older(conn.took(now), idle))
            };
            if late {
                conn.order(Order::Stop);
            }
            true
        });
        if now.is_multiple_of(4) {
            let now = Instant::now();
            for service in self.services.borrow().values() {
                service.tidy(now);
            }
            self.retired.borrow_mut().retain(|service| !service.is_over());
        }
    }

    fn order_all(&self, order: Order) {
        for conn in self.connections.borrow().iter().filter_map(Weak::upgrade) {
            conn.order(order);
        }
    }

    /// Counts a tunnel for as long as what it gives is kept.
    pub(crate) fn tunnel(&self) -> Tunnel {
        self.tunnels.set(self.tunnels.get() + 1);
        Tunnel(Rc::clone(&self.tunnels))
    }

    /// Waits until tunnels are to end, because the gateway does.
    pub(crate) async fn over(&self) {
        while !self.over.get() {
            self.told.notified().await;
        }
    }

    fn end_tunnels(&self) {
        self.over.set(true);
        self.told.notify_waiters();
    }

    fn is_quiet(&self) -> bool {
        self.tunnels.get() == 0 && self.connections.borrow().iter().all(|conn| conn.strong_count() == 0)
    }

    fn look_at_suspects(self: &Rc<Self>) {
        for service in self.services.borrow().values() {
            for (place, upstream) in service.suspects() {
                let service = Rc::clone(service);
                tokio::task::spawn_local(async move {
                    let timeout = service.policy().connect_timeout;
                    if upstream::connect(upstream.address, timeout).await.is_ok() {
                        service.reached(place, &upstream);
                    }
                });
            }
        }
    }

    fn state(&self) -> snapshot::WorkerState {
        let now = self.now();
        let services = self.services.borrow();
        let services = services.iter().map(|(name, service)| (name.clone(), service.view(now))).collect();
        snapshot::WorkerState { revision: self.revision.get(), services }
    }
}

/// Runs a worker until its phase says that it has ended. The thread is its own.
pub(crate) fn run(begin: Begin) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            error!(%error, "a thread of the gateway could not start");
            return;
        }
    };
    LocalSet::new().block_on(&runtime, work(begin));
}

async fn work(begin: Begin) {
    let Begin { index, shared, mut served, mut phase, mut questions } = begin;
    let mut seed = [0; 8];
    if let Err(error) = getrandom::fill(&mut seed) {
        warn!(%error, "no randomness from the system");
    }
    let worker = Rc::new(Worker {
        index,
        shared,
        routes: RefCell::new(Rc::new(Routes::new(&crate::Table::default(), "", |_| None))),
        services: RefCell::default(),
        retired: RefCell::default(),
        dice: Cell::new(u64::from_le_bytes(seed)),
        clock: Arc::new(AtomicU32::new(1)),
        connections: RefCell::default(),
        revision: Cell::new(0),
        reported: RefCell::default(),
        tunnels: Rc::default(),
        over: Cell::new(false),
        told: Notify::new(),
        closing: Cell::new(false),
    });
    let mut listening = Listening::default();
    let first = Arc::clone(&served.borrow_and_update());
    worker.apply(&first);
    listening.follow(&worker, &first);
    drop(first); // it holds sockets
    let mut tick = tokio::time::interval(TICK);
    let mut suspects = tokio::time::interval(SUSPECTS);
    let mut ending: Option<(Instant, Instant)> = None;
    loop {
        tokio::select! {
            changed = served.changed() => {
                if changed.is_err() {
                    return;
                }
                let next = Arc::clone(&served.borrow_and_update());
                worker.apply(&next);
                if ending.is_none() {
                    listening.follow(&worker, &next);
                }
            }
            changed = phase.changed() => {
                let next = if changed.is_err() { Phase::Over } else { *phase.borrow_and_update() };
                match next {
                    Phase::Running => {}
                    Phase::Draining { until } => {
                        listening.stop();
                        worker.closing.set(true);
                        // Half of the time clients may find out by a response that says so.
                        let now = Instant::now();
                        ending = Some((now + until.saturating_duration_since(now) / 2, until));
                    }
                    Phase::Over => {
                        worker.order_all(Order::Stop);
                        return;
                    }
                }
            }
            Some(question) = questions.recv() => match question {
                Question::Snapshot(answer) => {
                    let _ = answer.send(worker.state()); // whoever asked may have gone
                }
            },
            _ = suspects.tick() => worker.look_at_suspects(),
            _ = tick.tick() => {
                worker.tick();
                if let Some((finish, until)) = ending {
                    let now = Instant::now();
                    if now >= finish {
                        worker.end_tunnels();
                        worker.order_all(Order::Finish);
                    }
                    if now >= until || worker.is_quiet() {
                        worker.order_all(Order::Stop);
                        // What was told to stop does so when it is polled next.
                        tokio::task::yield_now().await;
                        return;
                    }
                }
            }
        }
    }
}

/// The listeners of one worker. Each has a task that accepts.
#[derive(Default)]
struct Listening {
    tasks: JoinSet<()>,
    by_listener: BTreeMap<crate::listen::Listener, (usize, Vec<AbortHandle>)>,
}

impl Listening {
    /// Accepts where the table says, and no longer where it does not.
    fn follow(&mut self, worker: &Rc<Worker>, served: &Served) {
        self.by_listener.retain(|listener, (id, tasks)| {
            let stays = served.sockets.get(listener).is_some_and(|sockets| sockets.id == *id);
            if !stays {
                tasks.iter().for_each(AbortHandle::abort);
            }
            stays
        });
        for (listener, sockets) in &served.sockets {
            if self.by_listener.contains_key(listener) {
                continue;
            }
            let mut tasks = Vec::new();
            for socket in sockets.of(worker.index, worker.shared.threads) {
                let socket = match socket.try_clone().and_then(tokio::net::TcpListener::from_std) {
                    Ok(socket) => socket,
                    Err(error) => {
                        error!(%listener, %error, "cannot listen");
                        continue;
                    }
                };
                let (worker, listener) = (Rc::clone(worker), listener.clone());
                tasks.push(match &listener {
                    crate::listen::Listener::Tcp(port) => {
                        self.tasks.spawn_local(tcp::accept(worker, socket, *port))
                    }
                    _ => self.tasks.spawn_local(serve::accept(worker, socket, listener.is_tls())),
                });
            }
            self.by_listener.insert(listener.clone(), (sockets.id, tasks));
        }
        while self.tasks.try_join_next().is_some() {}
    }

    fn stop(&mut self) {
        self.tasks.abort_all();
        self.by_listener.clear();
    }
}
