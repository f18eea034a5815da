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

/// What one turn has to deliver.
#[derive(Default)]
pub(crate) struct Parcel {
    pub(crate) answers: Vec<Answer>,
    pub(crate) letters: Vec<Letter>,
}

/// The apply thread's end. Unbounded, but bounded by what is in it: there is an answer per request that a client waits
/// for, and a letter per reserved place.
pub(crate) type Parcels = mpsc::UnboundedSender<Parcel>;

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
