//! A prefix of the hub, followed as `registry` follows it: listed, watched, listed again after a while and after any
//! doubt.
//!
//! Invariant: whoever applies the deltas in order holds what the hub held at the last revision it was given.

use super::Purpose;
use crate::message::{Answer, Context, Failure, Output, Peer, Request, StreamId, Timer, Topic};
use model::Revision;
use mvcc::{Event, KeyValue};
use std::{collections::VecDeque, time::Duration};

/// How long a watch is trusted on its own, as in `registry`.
const RELIST: Duration = Duration::from_secs(60);
/// The first and the longest pause between attempts, as in `registry`.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// What a follower learns.
#[derive(Debug, Clone)]
pub enum Delta {
    /// Everything there is, and when.
    Reset(Revision, Vec<KeyValue>),
    /// What changed since.
    Changes(Vec<Event>),
    /// The hub is away: keep what you have.
    Lost,
}

/// A followed prefix.
#[derive(Debug)]
pub struct Follow {
    peer: Peer,
    topic: Topic,
    prefix: String,
    /// Which watch is the present one; 0 while nothing is followed.
    number: u32,
    listing: Option<(Revision, Vec<KeyValue>)>,
    watching: bool,
    pause: Duration,
    lost: bool,
    /// Deltas that nobody took yet.
    pub inbox: VecDeque<Delta>,
}

impl Follow {
    pub fn new(peer: Peer, topic: Topic, prefix: impl Into<String>) -> Self {
        Self {
            peer,
            topic,
            prefix: prefix.into(),
            number: 0,
            listing: None,
            watching: false,
            pause: BACKOFF.0,
            lost: false,
            inbox: VecDeque::new(),
        }
    }

    fn stream(&self) -> StreamId {
        StreamId { peer: self.peer, topic: self.topic, number: self.number }
    }

    /// Follows from the beginning; what was there is thrown away.
    pub fn start(&mut self, ctx: &mut Context<'_>) {
        self.inbox.clear();
        (self.lost, self.pause) = (false, BACKOFF.0);
        self.list(ctx);
    }

    /// Follows no longer.
    pub fn stop(&mut self, ctx: &mut Context<'_>) {
        self.leave(ctx);
        self.number += 1;
        self.inbox.clear();
    }

    fn leave(&mut self, ctx: &mut Context<'_>) {
        if std::mem::take(&mut self.watching) {
            ctx.out.push(Output::Unwatch(self.stream()));
        }
        self.listing = None;
    }

    fn list(&mut self, ctx: &mut Context<'_>) {
        self.leave(ctx);
        self.number += 1;
        ctx.call(Purpose::List(self.topic, self.number), Request::List(self.prefix.clone()));
    }

    pub fn listed(&mut self, number: u32, answer: Result<Answer, Failure>, ctx: &mut Context<'_>) {
        if number != self.number {
            return;
        }
        match answer {
            Ok(Answer::Listing { revision, items }) => {
                let (stream, prefix) = (self.stream(), self.prefix.clone());
                self.listing = Some((revision, items));
                let request = Request::Watch { stream, prefix, from: revision.next() };
                ctx.call(Purpose::Watch(self.topic, self.number), request);
            }
            _ => self.failed(ctx),
        }
    }

    pub fn watching(&mut self, number: u32, answer: Result<Answer, Failure>, ctx: &mut Context<'_>) {
        if number != self.number {
            return;
        }
        match (answer, self.listing.take()) {
            (Ok(Answer::Watching), Some((revision, items))) => {
                (self.watching, self.lost, self.pause) = (true, false, BACKOFF.0);
                self.inbox.push_back(Delta::Reset(revision, items));
                ctx.after(RELIST, Timer::Follow(self.topic, self.number));
            }
            _ => self.failed(ctx),
        }
    }

    fn failed(&mut self, ctx: &mut Context<'_>) {
        self.leave(ctx);
        self.number += 1;
        if !std::mem::replace(&mut self.lost, true) {
            self.pause = BACKOFF.0;
            self.inbox.push_back(Delta::Lost);
        }
        ctx.after(self.pause, Timer::Follow(self.topic, self.number));
        self.pause = (self.pause * 2).min(BACKOFF.1);
    }

    /// It is time to list, if the timer is of the present watch.
    pub fn woken(&mut self, number: u32, ctx: &mut Context<'_>) {
        if number == self.number {
            self.list(ctx);
        }
    }

    pub fn changed(&mut self, stream: StreamId, events: Option<Vec<Event>>, ctx: &mut Context<'_>) {
        if stream != self.stream() || self.number == 0 {
            return;
        }
        match events {
            // Before the answer that the watch is there, they would come before the listing.
            Some(events) if self.watching => self.inbox.push_back(Delta::Changes(events)),
            _ => self.failed(ctx),
        }
    }
}
