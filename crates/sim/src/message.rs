//! What daemons and the hub say to each other, and what the world says to a daemon.
//!
//! Invariant: nothing here holds state. The requests are those of `registry`'s `Store`.

use crate::time::Time;
use bytes::Bytes;
use model::{LeaseId, Revision, UnitName};
use muster_core::agent::{Done, Wanted};
use mvcc::{Event, KeyValue};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// A machine's place in the cluster: 0 for `m1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Host(pub usize);

impl std::fmt::Display for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "m{}", self.0 + 1)
    }
}

/// One run of a machine's daemon: what was meant for an earlier one reaches nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Peer {
    /// Which machine.
    pub host: Host,
    /// Which run of its daemon, counted from 1.
    pub run: u32,
}

/// What a daemon follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Topic {
    /// Who leads.
    Leader,
    /// Everything, by the engine that leads.
    Cluster,
    /// The machine's own schedule.
    Schedule,
}

/// One watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId {
    /// Whose.
    pub peer: Peer,
    /// Of what.
    pub topic: Topic,
    /// The topic's watches are numbered: what comes from an old one is thrown away.
    pub number: u32,
}

/// A condition of a transaction.
#[derive(Debug, Clone)]
pub enum Guard {
    /// The key does not exist.
    Absent(String),
    /// The key has not been written since.
    Unchanged(String, Revision),
}

/// A write in a transaction.
#[derive(Debug, Clone)]
pub enum Write {
    /// Sets a key.
    Put {
        /// Which.
        key: String,
        /// To what.
        value: Bytes,
        /// Under which lease.
        lease: Option<LeaseId>,
    },
    /// Deletes a key.
    Delete(String),
}

/// What a daemon asks of the hub.
#[derive(Debug, Clone)]
pub enum Request {
    /// Every key with a prefix.
    List(String),
    /// Some keys.
    Get(Vec<String>),
    /// A transaction.
    Commit {
        /// Its conditions.
        guards: Vec<Guard>,
        /// Its writes.
        writes: Vec<Write>,
    },
    /// A lease.
    Grant(Duration),
    /// A lease's whole time anew.
    Renew(LeaseId),
    /// A lease's end.
    Revoke(LeaseId),
    /// How long a lease has.
    TimeLeft(LeaseId),
    /// Changes of a prefix.
    Watch {
        /// The stream they come in.
        stream: StreamId,
        /// Which keys.
        prefix: String,
        /// From which revision on.
        from: Revision,
    },
}

/// What the hub answers.
#[derive(Debug, Clone)]
pub enum Answer {
    /// To a list.
    Listing {
        /// When this was true.
        revision: Revision,
        /// The keys.
        items: Vec<KeyValue>,
    },
    /// To a transaction.
    Committed {
        /// Whether the guards held.
        yes: bool,
        /// The hub's revision.
        revision: Revision,
    },
    /// To a grant.
    Granted(LeaseId),
    /// To a renewal: the lease's whole time, or zero when there is no such lease.
    Renewed(Duration),
    /// To a revocation.
    Revoked,
    /// To a question for the time left.
    Left(Duration),
    /// To a watch.
    Watching,
}

/// Why there was no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The hub's machine refuses the connection, or the connection broke.
    #[error("the hub is away")]
    Away,
    /// Nothing came in time. The hub may have done it all the same.
    #[error("no answer in time")]
    Late,
    /// The hub will not.
    #[error("refused: {0}")]
    Refused(String),
}

/// A word of systemd's.
#[derive(Debug, Clone)]
pub enum Said {
    /// Files are linked and read.
    Loaded(BTreeMap<UnitName, Result<File, String>>),
    /// Files are gone.
    Unloaded(Vec<UnitName>),
    /// The start is queued, or not.
    Started(UnitName, u64, Result<(), String>),
    /// The stop is queued, or not.
    Stopped(UnitName, Result<(), String>),
    /// What was asked about: `ActiveState` of each.
    States(BTreeMap<UnitName, String>),
    /// A signal: a unit's state changed.
    State(UnitName, String),
    /// A signal: a job ended.
    JobEnded(UnitName),
    /// The fence's watcher runs.
    Armed,
}

/// A unit file, and what it says that concerns the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Hash of its meaning.
    pub hash: String,
    /// Whether it has `OnPartition=stop`.
    pub fenced: bool,
}

/// The last known schedule, with the files that are known.
pub type Schedule = BTreeMap<UnitName, (Wanted, Option<File>)>;

/// Until when, by the machine's clock, which units may run without the hub's word.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Note {
    /// Until when.
    pub until: Time,
    /// Which.
    pub units: BTreeSet<UnitName>,
}

/// What a daemon asks of systemd.
#[derive(Debug, Clone)]
pub enum Ask {
    /// Write files and make systemd read them.
    Load(BTreeMap<UnitName, File>),
    /// Remove files.
    Unload(Vec<UnitName>),
    /// Start, because of that order.
    Start(UnitName, u64),
    /// Stop.
    Stop(UnitName),
    /// Tell states.
    States(BTreeSet<UnitName>),
}

/// When a daemon wants to be woken, and what for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timer {
    /// The session's next renewal or attempt.
    Session,
    /// Presence is to be written again.
    Presence,
    /// States are to be written again.
    States,
    /// A topic's watch has been trusted long enough, or is to be tried again.
    Follow(Topic, u32),
    /// All units are to be looked at.
    Resync,
    /// Something that failed may be tried again.
    Retry,
    /// The engine's timer of that number.
    Engine(u32),
    /// The engine's own writes should have come back, since that wait began.
    Echo(u32),
    /// The leadership is to be renewed.
    Renewal(u32),
    /// The leadership's renewal of that number should have been answered.
    RenewalLate(u32),
    /// The hub had time to answer a daemon that has just begun.
    Patience,
    /// The engine has had time to read of what stopped last.
    Leave,
    /// The engine stands for election again.
    Stand,
}

/// What reaches a daemon.
#[derive(Debug, Clone)]
pub enum Input {
    /// The hub's answer to a call.
    Answer(u64, Result<Answer, Failure>),
    /// Changes; `None` when the stream has broken.
    Changes(StreamId, Option<Vec<Event>>),
    /// It is time.
    Timer(Timer),
    /// systemd says something.
    Systemd(Said),
    /// SIGTERM while the machine shuts down.
    Shutdown,
}

/// What a daemon wants done.
#[derive(Debug, Clone)]
pub enum Output {
    /// A call of the hub.
    Call(u64, Request),
    /// A stream is no longer listened to.
    Unwatch(StreamId),
    /// Wake it after so long by its own clock.
    After(Duration, Timer),
    /// Ask systemd.
    Systemd(Ask),
    /// Keep in /run what was carried out.
    Note(BTreeMap<UnitName, Done>),
    /// Keep on disk what the schedule is.
    Remember(Schedule),
    /// Keep in /run until when which units may run.
    NoteFence(Note),
    /// Start the fence's watcher.
    Arm,
    /// Keep in /run under which lease the machine is present.
    NoteLease(Option<LeaseId>),
    /// Something that a reader of the trace wants to know.
    Say(String),
    /// Good-bye is said: the process ends.
    End,
}

/// What the daemon's parts use while they handle an input: the local clock, and where wishes go.
#[derive(Debug)]
pub struct Context<'a> {
    /// What the machine's clock shows.
    pub now: Time,
    pub(crate) out: &'a mut Vec<Output>,
    pub(crate) calls: &'a mut BTreeMap<u64, crate::daemon::Purpose>,
    pub(crate) next_call: &'a mut u64,
    /// Units that the fence has stopped.
    pub(crate) marks: &'a mut BTreeSet<UnitName>,
}

impl Context<'_> {
    pub(crate) fn call(&mut self, purpose: crate::daemon::Purpose, request: Request) {
        *self.next_call += 1;
        self.calls.insert(*self.next_call, purpose);
        self.out.push(Output::Call(*self.next_call, request));
    }

    pub(crate) fn after(&mut self, delay: Duration, timer: Timer) {
        self.out.push(Output::After(delay, timer));
    }

    pub(crate) fn say(&mut self, text: impl Into<String>) {
        self.out.push(Output::Say(text.into()));
    }
}
