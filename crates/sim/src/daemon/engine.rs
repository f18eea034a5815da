//! The engine's driver: stands for election under a lease of its own, and leads until that ends, as `muster`'s
//! driver does.
//!
//! Invariant: every write is guarded by the leader's key at the revision of the election.

mod lead;

use super::{
    LEASE_TTL, Mutation, Purpose,
    follow::{Delta, Follow},
};
use crate::{
    message::{Answer, Context, Failure, Guard, Peer, Request, Timer, Topic, Write},
    time::Time,
};
use lead::{AWAY, Lead};
use model::{LeaseId, MachineId, RECORD_VERSION, Revision, keys};
use muster_core::cluster::LeaderRecord;
use mvcc::EventKind;
use std::time::Duration;

/// How long a leadership outlives its last renewal, as in `muster`.
const LEADERSHIP: Duration = Duration::from_secs(2);
/// How often it is renewed, as in `muster`.
const RENEWAL: Duration = Duration::from_millis(500);
/// Between attempts after an error of the hub, as in `muster`.
const PAUSE: Duration = Duration::from_millis(250);

/// A machine's engine.
#[derive(Debug)]
pub struct Engine {
    id: MachineId,
    mutation: Option<Mutation>,
    leader: Follow,
    cluster: Follow,
    /// Whether nobody leads, as far as is known.
    vacant: bool,
    /// Since when the hub has answered without a gap.
    reachable: Option<Time>,
    role: Role,
    /// Renewals are numbered, so that one that comes too late is known.
    renewal: u32,
}

#[derive(Debug)]
enum Role {
    Follower,
    /// A lease was asked for, or the leader's key under it.
    Standing(Option<LeaseId>),
    /// Something is given back, or time passes before the next attempt.
    Pausing,
    Leading(LeaseId, Box<Lead>),
}

impl Engine {
    pub fn new(peer: Peer, id: MachineId, mutation: Option<Mutation>) -> Self {
        Self {
            id,
            mutation,
            leader: Follow::new(peer, Topic::Leader, keys::LEADER),
            cluster: Follow::new(peer, Topic::Cluster, keys::MUSTER),
            vacant: false,
            reachable: None,
            role: Role::Follower,
            renewal: 0,
        }
    }

    pub fn start(&mut self, ctx: &mut Context<'_>) {
        self.leader.start(ctx);
    }

    pub fn follow(&mut self, topic: Topic) -> &mut Follow {
        if topic == Topic::Leader { &mut self.leader } else { &mut self.cluster }
    }

    /// Whether this engine believes that it leads, and since which revision.
    pub fn term(&self) -> Option<Revision> {
        match &self.role {
            Role::Leading(_, lead) => Some(lead.term),
            _ => None,
        }
    }

    pub fn act(&mut self, ctx: &mut Context<'_>) {
        match &mut self.role {
            Role::Follower => {
                while let Some(delta) = self.leader.inbox.pop_front() {
                    self.election_said(delta, ctx.now);
                }
                if self.vacant {
                    self.role = Role::Standing(None);
                    ctx.call(Purpose::Leadership, Request::Grant(LEADERSHIP));
                }
            }
            Role::Standing(_) | Role::Pausing => {}
            Role::Leading(_, lead) => {
                if let Err(why) = lead.act(&mut self.cluster.inbox, ctx) {
                    self.resign(why, ctx);
                }
            }
        }
    }

    fn election_said(&mut self, delta: Delta, now: Time) {
        match delta {
            Delta::Reset(_, items) => {
                self.reachable.get_or_insert(now);
                self.vacant = !items.iter().any(|kv| kv.key == keys::LEADER);
            }
            Delta::Changes(events) => {
                for event in events.iter().filter(|event| event.kv.key == keys::LEADER) {
                    self.vacant = event.kind == EventKind::Delete;
                }
            }
            Delta::Lost => (self.vacant, self.reachable) = (false, None),
        }
    }

    /// The leadership's lease is there, or not.
    pub fn granted(&mut self, answer: Result<Answer, Failure>, ctx: &mut Context<'_>) {
        let Ok(Answer::Granted(lease)) = answer else { return self.pause(ctx) };
        let record = LeaderRecord { v: RECORD_VERSION, machine: self.id.clone() };
        let value = serde_json::to_vec(&record).expect("records always render");
        let write = Write::Put { key: keys::LEADER.to_owned(), value: value.into(), lease: Some(lease) };
        let guard = Guard::Absent(keys::LEADER.to_owned());
        self.role = Role::Standing(Some(lease));
        ctx.call(Purpose::Campaign, Request::Commit { guards: vec![guard], writes: vec![write] });
    }

    pub fn elected(&mut self, answer: Result<Answer, Failure>, ctx: &mut Context<'_>) {
        let Role::Standing(Some(lease)) = self.role else { return };
        match answer {
            Ok(Answer::Committed { yes: true, revision }) => {
                ctx.say(format!("leads (term {revision})"));
                // After an outage leases must have had time to be renewed.
                let since = *self.reachable.get_or_insert(ctx.now);
                let patience = LEASE_TTL.saturating_sub(ctx.now - since);
                self.cluster.start(ctx);
                self.role =
                    Role::Leading(lease, Box::new(Lead::new(revision, ctx.now + patience, self.mutation)));
                self.renew(ctx);
            }
            Ok(_) => self.give_back(lease, ctx),
            Err(_) => self.pause(ctx),
        }
    }

    fn give_back(&mut self, lease: LeaseId, ctx: &mut Context<'_>) {
        self.role = Role::Pausing;
        ctx.call(Purpose::GiveBack, Request::Revoke(lease));
    }

    /// The next attempt comes after a pause.
    pub fn pause(&mut self, ctx: &mut Context<'_>) {
        self.role = Role::Pausing;
        ctx.after(PAUSE, Timer::Stand);
    }

    /// The pause is over: what happened meanwhile is not known, so begin with a fresh list.
    pub fn stand_again(&mut self, ctx: &mut Context<'_>) {
        if matches!(self.role, Role::Pausing) {
            (self.role, self.vacant) = (Role::Follower, false);
            self.leader.start(ctx);
        }
    }

    fn resign(&mut self, why: &str, ctx: &mut Context<'_>) {
        ctx.say(format!("leads no longer: {why}"));
        if why == AWAY {
            self.reachable = None;
        }
        self.cluster.stop(ctx);
        if let Role::Leading(lease, _) = self.role {
            // Nobody need wait for the lease to end by itself.
            self.give_back(lease, ctx);
        }
    }

    /// Another engine takes the lead now, and not when the lease has ended.
    pub fn step_down(&mut self, ctx: &mut Context<'_>) {
        if self.term().is_some() {
            self.resign("shutting down", ctx);
        }
    }

    fn renew(&mut self, ctx: &mut Context<'_>) {
        if let Role::Leading(lease, _) = self.role {
            self.renewal += 1;
            ctx.call(Purpose::Renewal(self.renewal), Request::Renew(lease));
            ctx.after(LEADERSHIP, Timer::RenewalLate(self.renewal));
        }
    }

    pub fn renewed(&mut self, number: u32, answer: Result<Answer, Failure>, ctx: &mut Context<'_>) {
        if number != self.renewal || self.term().is_none() {
            return;
        }
        // What comes now of this one is late.
        self.renewal += 1;
        match answer {
            Ok(Answer::Renewed(left)) if left.is_zero() => {
                self.resign("the leadership was not renewed in time", ctx);
            }
            _ => ctx.after(RENEWAL, Timer::Renewal(self.renewal)),
        }
    }

    /// A renewal has not been answered in time, or the next is due.
    pub fn renewal_due(&mut self, number: u32, late: bool, ctx: &mut Context<'_>) {
        if number != self.renewal || self.term().is_none() {
            return;
        }
        if late {
            self.renewal += 1;
            ctx.after(RENEWAL, Timer::Renewal(self.renewal));
        } else {
            self.renew(ctx);
        }
    }

    /// What concerns the engine that leads; nothing happens if it is of another term.
    pub fn with_lead(
        &mut self,
        ctx: &mut Context<'_>,
        work: impl FnOnce(&mut Lead) -> Result<(), &'static str>,
    ) {
        if let Role::Leading(_, lead) = &mut self.role
            && let Err(why) = work(lead)
        {
            self.resign(why, ctx);
        }
    }
}
