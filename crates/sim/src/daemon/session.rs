//! The machine's lease, as `registry`'s `Session` keeps it: begun, renewed, begun again.
//!
//! Invariant: [`Session::lease`] was alive at its last renewal; it changes only for a new one.

use super::Purpose;
use crate::{
    message::{Answer, Context, Failure, Output, Request, Timer},
    time::Time,
};
use model::LeaseId;
use std::time::Duration;

/// Renewals per time to live, as in `registry`.
const RENEWALS_PER_TTL: f64 = 3.4;

/// A lease that is kept alive.
#[derive(Debug)]
pub struct Session {
    /// The lease that everything stands under; `None` until the hub was reached.
    pub lease: Option<LeaseId>,
    /// The hub's last word on the lease: which, and until when it lives at least.
    pub acknowledged: Option<(LeaseId, Time)>,
    /// The lease that is to be gone on with.
    known: Option<LeaseId>,
    ttl: Duration,
    /// Whether `known` was confirmed since the last failure.
    running: bool,
    /// When the call under way was sent.
    sent: Time,
}

/// What was asked.
#[derive(Debug, Clone, Copy)]
pub enum Call {
    Grant,
    Renew(LeaseId),
}

impl Session {
    pub fn new(ttl: Duration, known: Option<LeaseId>) -> Self {
        Self { lease: None, acknowledged: None, known, ttl, running: false, sent: Time::default() }
    }

    fn interval(&self) -> Duration {
        self.ttl.div_f64(RENEWALS_PER_TTL)
    }

    /// Begins, or goes on.
    pub fn act(&mut self, ctx: &mut Context<'_>) {
        self.sent = ctx.now;
        match self.known {
            Some(lease) => ctx.call(Purpose::Session(Call::Renew(lease)), Request::Renew(lease)),
            None => ctx.call(Purpose::Session(Call::Grant), Request::Grant(self.ttl)),
        }
    }

    /// True when [`Self::lease`] is another one now.
    pub fn answered(&mut self, call: Call, answer: Result<Answer, Failure>, ctx: &mut Context<'_>) {
        match (call, answer) {
            (Call::Grant, Ok(Answer::Granted(lease))) => {
                self.known = Some(lease);
                self.act(ctx);
            }
            (Call::Renew(lease), Ok(Answer::Renewed(ttl))) if !ttl.is_zero() => {
                self.running = true;
                self.acknowledged = Some((lease, self.sent + ttl));
                // Counted from when it was sent, as the real one counts.
                let passed = ctx.now - self.sent;
                ctx.after(self.interval().saturating_sub(passed), Timer::Session);
                if self.lease != Some(lease) {
                    self.lease = Some(lease);
                    ctx.out.push(Output::NoteLease(self.lease));
                }
            }
            (Call::Renew(_), Ok(_)) => {
                // It has ended: a new one.
                (self.known, self.running) = (None, false);
                self.act(ctx);
            }
            (_, _) => {
                let pause = if self.running { Duration::ZERO } else { self.interval() / 4 };
                self.running = false;
                ctx.after(pause, Timer::Session);
            }
        }
    }
}
