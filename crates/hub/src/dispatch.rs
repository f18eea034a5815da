//! From the apply thread to the services: a turn's answers and messages in one go.
//!
//! Waking a task from another thread costs a lock and perhaps a system call, from its own runtime next to nothing. So
//! the apply thread wakes one task, and that one all others. Invariant: what is handed over is delivered in that order.

use crate::watchers::Outgoing;
use tokio::sync::mpsc;

/// An answer that waits for the disk.
pub(crate) type Answer = Box<dyn FnOnce() + Send>;

/// A message and its reserved place among a stream's outgoing ones.
pub(crate) type Letter = (mpsc::OwnedPermit<Outgoing>, Outgoing);

/// What one turn has to deliver.
#[derive(Default)]
pub(crate) struct Parcel {
    pub(crate) answers: Vec<Answer>,
    pub(crate) letters: Vec<Letter>,
}

/// The apply thread's end. Unbounded, but bounded by what is in it: there is an answer per request that a client waits
/// for, and a letter per reserved place.
pub(crate) type Parcels = mpsc::UnboundedSender<Parcel>;

/// Delivers until the apply thread ends.
pub(crate) async fn deliver(mut parcels: mpsc::UnboundedReceiver<Parcel>) {
    while let Some(Parcel { answers, letters }) = parcels.recv().await {
        for answer in answers {
            answer();
        }
        for (permit, message) in letters {
            permit.send(message);
        }
    }
}
