//! Answers about other people's names, for as long as they said.
//!
//! Two generations: what is used moves into the younger one, and when that is full the older one is forgotten. So the
//! size is bounded, and what is asked for stays.

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{DNSClass, RData, RecordType},
};
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// Answers of a generation: some hundred bytes each, 2 MiB for both generations at the most usual size.
const GENERATION: usize = 2048;

/// Nobody's records change less often than an operator's patience lasts.
const LONGEST: u32 = 3600;

/// "There is none" is the answer that is most annoying when it is old (RFC 2308 allows more).
const LONGEST_NEGATIVE: u32 = 60;

/// A question.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    /// In lower case.
    pub(crate) name: String,
    pub(crate) kind: RecordType,
    pub(crate) class: DNSClass,
    /// Whether signatures are wanted.
    pub(crate) signed: bool,
}

#[derive(Debug)]
struct Held {
    message: Message,
    since: Instant,
    ttl: u32,
}

#[derive(Debug, Default)]
pub(crate) struct Cache {
    young: HashMap<Key, Held>,
    old: HashMap<Key, Held>,
}

impl Cache {
    /// The answer, its times shortened by how long it was kept.
    pub(crate) fn answer(&mut self, key: &Key, now: Instant) -> Option<Message> {
        if let Some((key, held)) = self.old.remove_entry(key) {
            self.keep(key, held);
        }
        let held = self.young.get(key)?;
        let age = now.saturating_duration_since(held.since);
        if age >= Duration::from_secs(held.ttl.into()) {
            self.young.remove(key);
            return None;
        }
        let mut message = held.message.clone();
        let age = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
        let sections = [&mut message.answers, &mut message.authorities, &mut message.additionals];
        sections.into_iter().flatten().for_each(|record| record.ttl = record.ttl.saturating_sub(age));
        Some(message)
    }

    /// Keeps an answer, if it says for how long.
    pub(crate) fn take(&mut self, key: Key, message: &Message, now: Instant) {
        if let Some(ttl) = lifetime(message).filter(|ttl| *ttl > 0) {
            self.keep(key, Held { message: message.clone(), since: now, ttl });
        }
    }

    fn keep(&mut self, key: Key, held: Held) {
        if self.young.len() >= GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, held);
    }
}

/// How long an answer holds, in seconds. `None`: it does not say, or it is none.
fn lifetime(message: &Message) -> Option<u32> {
    if message.metadata.truncation {
        return None;
    }
    let shortest = message.answers.iter().map(|record| record.ttl).min();
    match (message.metadata.response_code, shortest) {
        (ResponseCode::NoError, Some(shortest)) => Some(shortest.min(LONGEST)),
        (ResponseCode::NoError | ResponseCode::NXDomain, _) => {
            let mut zones = message.authorities.iter().filter_map(|record| match &record.data {
                RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
                _ => None,
            });
            zones.next().map(|ttl| ttl.min(LONGEST_NEGATIVE))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::{
        op::OpCode,
        rr::{Name, Record, rdata::A},
    };

    fn key(name: &str) -> Key {
        Key { name: name.to_owned(), kind: RecordType::A, class: DNSClass::IN, signed: false }
    }

    fn message(ttl: u32) -> Message {
        let mut message = Message::response(1, OpCode::Query);
        let name = Name::from_ascii("example.org.").expect("a name");
        message.add_answer(Record::from_rdata(name, ttl, RData::A(A::new(192, 0, 2, 1))));
        message
    }

    #[test]
    fn answers_age_and_end() {
        let (mut cache, start) = (Cache::default(), Instant::now());
        cache.take(key("a"), &message(30), start);
        let after = |seconds| start + Duration::from_secs(seconds);
        let ttl =
            |cache: &mut Cache, seconds| cache.answer(&key("a"), after(seconds)).map(|m| m.answers[0].ttl);
        assert_eq!((ttl(&mut cache, 0), ttl(&mut cache, 29)), (Some(30), Some(1)));
        assert_eq!((ttl(&mut cache, 30), ttl(&mut cache, 0)), (None, None), "over is over");
        cache.take(key("a"), &message(0), start);
        assert_eq!(ttl(&mut cache, 0), None);
        let failed = Message::error_msg(1, OpCode::Query, ResponseCode::ServFail);
        cache.take(key("a"), &failed, start);
        assert_eq!(ttl(&mut cache, 0), None);
    }

    #[test]
    fn what_is_used_stays_and_the_size_is_bounded() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        cache.take(key("used"), &message(60), now);
        for number in 0..10 * GENERATION {
            cache.take(key(&number.to_string()), &message(60), now);
            if number % 100 == 0 {
                assert!(cache.answer(&key("used"), now).is_some(), "{number}");
            }
        }
        assert!(cache.young.len() + cache.old.len() <= 2 * GENERATION);
        assert!(cache.answer(&key("0"), now).is_none());
    }
}
