//! How long-lived streams end when the hub does.
//!
//! Invariant: a client learns of it by Unavailable, on which etcd's clients try again.

use crate::request::status;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio_stream::Stream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::Status;

/// A stream of answers until the hub stops.
pub(crate) struct Until<S> {
    answers: Pin<Box<S>>,
    stop: Pin<Box<WaitForCancellationFutureOwned>>,
    ended: bool,
}

impl<S> Until<S> {
    pub(crate) fn new(answers: S, stop: CancellationToken) -> Self {
        Self { answers: Box::pin(answers), stop: Box::pin(stop.cancelled_owned()), ended: false }
    }
}

impl<T, S: Stream<Item = Result<T, Status>>> Stream for Until<S> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if self.stop.as_mut().poll(cx).is_ready() {
            self.ended = true;
            return Poll::Ready(Some(Err(status(mvcc::Error::Stopped))));
        }
        let next = self.answers.as_mut().poll_next(cx);
        self.ended = matches!(next, Poll::Ready(None | Some(Err(_))));
        next
    }
}
