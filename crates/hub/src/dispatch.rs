//! From the apply thread to the services: a turn's answers and messages in one go.
//!
//! Waking a task from another thread costs a lock and perhaps a system call, from its own runtime next to nothing. So
//! the apply thread wakes one task, and that one all others. Invariant: answers are delivered in the order in which they
//! are handed over, and so are letters.

use crate::watchers::{Outgoing, StreamId};
use std::collections::VecDeque;
use tokio::sync::mpsc;

/// An answer that waits for the disk.
pub(crate) type Answer = Box<dyn FnOnce() + Send>;

/// A message for a stream.
pub(crate) struct Letter {
    pub(crate) stream: StreamId,
    /// Its place among the stream's outgoing messages.
    pub(crate) place: mpsc::OwnedPermit<Outgoing>,
    pub(crate) message: Outgoing,
}

/// What one turn has to deliver, or a part of it.
#[derive(Default)]
pub(crate) struct Parcel {
    pub(crate) answers: Vec<Answer>,
    pub(crate) letters: Vec<Letter>,
}

/// The apply thread's end. Unbounded, but bounded by what is in it: there is an answer per request that a client waits
/// for, and a letter per reserved place.
pub(crate) type Parcels = mpsc::UnboundedSender<Parcel>;

/// Letters in one parcel, so that the first streams have theirs while the apply thread looks after the others.
const PARCEL: usize = 64;

/// Where the apply thread puts what its turn has to deliver.
pub(crate) struct Post {
    parcels: Parcels,
    parcel: Parcel,
}

impl Post {
    pub(crate) fn new(parcels: Parcels) -> Self {
        Self { parcels, parcel: Parcel::default() }
    }

    pub(crate) fn answers(&mut self, answers: &mut Vec<Answer>) {
        self.parcel.answers.append(answers);
    }

    pub(crate) fn letter(&mut self, letter: Letter) {
        self.parcel.letters.push(letter);
        if self.parcel.letters.len() == PARCEL {
            self.send();
        }
    }

    /// To be called at the end of a turn.
    pub(crate) fn send(&mut self) {
        let parcel = std::mem::take(&mut self.parcel);
        if !parcel.answers.is_empty() || !parcel.letters.is_empty() {
            let _ = self.parcels.send(parcel); // nobody is left if the services have ended
        }
    }
}

/// Letters that are handed over in one go. More would let a connection wait for all others before its first write; with
/// fewer it writes less at a time.
const HANDFUL: usize = 32;

/// Delivers until the apply thread ends. Answers overtake the letters that wait: a write need not wait until everyone
/// has been told of the one before it.
pub(crate) async fn deliver(mut parcels: mpsc::UnboundedReceiver<Parcel>) {
    let mut waiting = VecDeque::new();
    loop {
        let parcel = if waiting.is_empty() {
            let Some(parcel) = parcels.recv().await else { return };
            Some(parcel)
        } else {
            parcels.try_recv().ok()
        };
        if let Some(Parcel { answers, letters }) = parcel {
            answers.into_iter().for_each(|answer| answer());
            waiting.extend(letters);
        }
        hand_over(&mut waiting);
        if !waiting.is_empty() {
            // The streams just woken run now, and their connections write.
            tokio::task::yield_now().await;
        }
    }
}

/// Some letters, and all further ones for the connection of the last.
fn hand_over(letters: &mut VecDeque<Letter>) {
    let mut handed = 0;
    let mut last = None;
    while let Some(letter) = letters.front() {
        let connection = letter.stream.connection;
        if handed >= HANDFUL && last != Some(connection) {
            break;
        }
        last = Some(connection);
        handed += 1;
        if let Some(Letter { place, message, .. }) = letters.pop_front() {
            place.send(message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mvcc::Revision;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};

    const ALONE: &str = "nobody panicked with the lock";

    #[tokio::test]
    async fn answers_overtake_letters_and_letters_keep_their_order() {
        let (parcels, deliveries) = mpsc::unbounded_channel();
        let mut post = Post::new(parcels);
        let (outgoing, stream) = mpsc::channel(1000);
        let stream = Arc::new(Mutex::new(stream));
        let connections = 10;
        for connection in 0..connections {
            let stream = StreamId::new(connection);
            for revision in 1..=20 {
                let place = outgoing.clone().try_reserve_owned().expect("there is room");
                let message = Outgoing::Progress { id: connection as i64, revision: Revision(revision) };
                post.letter(Letter { stream, place, message });
            }
        }
        let (answered, told) = (Arc::new(AtomicUsize::new(usize::MAX)), Arc::clone(&stream));
        let at = Arc::clone(&answered);
        let answer: Answer = Box::new(move || at.store(told.lock().expect(ALONE).len(), Ordering::Relaxed));
        post.answers(&mut vec![answer]);
        post.send();
        drop(post); // the apply thread ends
        deliver(deliveries).await;
        drop(outgoing);
        let before = answered.load(Ordering::Relaxed);
        assert!(before < 3 * PARCEL, "{before}: it does not wait for the letters posted before it");
        let (mut stream, mut told) = (stream.lock().expect(ALONE), Vec::new());
        while let Ok(Outgoing::Progress { id, revision }) = stream.try_recv() {
            told.push((id, revision.0));
        }
        let all: Vec<_> = (0..connections as i64).flat_map(|id| (1..=20).map(move |of| (id, of))).collect();
        assert_eq!(told, all);
    }
}
