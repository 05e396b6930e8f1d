//! Carries out the calls of an HTTP connection on the task of the connection.
//!
//! A task for each call would be woken, moved to another thread, and woken again for its response. Here the calls that can
//! go on do so one after another, and their responses are written together.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use futures::{StreamExt, stream::FuturesUnordered};
use hyper::rt::Executor;

type Call = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Takes the calls that a connection starts.
#[derive(Clone, Default)]
pub(super) struct NewCalls(Arc<Mutex<Vec<Call>>>);

impl NewCalls {
    fn take(&self) -> Vec<Call> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for NewCalls {
    fn execute(&self, call: F) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Box::pin(call));
    }
}

/// The calls of a connection.
pub(super) struct Calls {
    new: NewCalls,
    running: FuturesUnordered<Call>,
}

impl Calls {
    pub(super) fn new(new: NewCalls) -> Self {
        Self { new, running: FuturesUnordered::new() }
    }

    /// Polls a connection and its calls, until none can go on.
    pub(super) fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        mut connection: Pin<&mut impl Future<Output = T>>,
    ) -> Poll<T> {
        for _ in 0..TURNS_MAX {
            if let Poll::Ready(done) = connection.as_mut().poll(cx) {
                return Poll::Ready(done);
            }
            self.running.extend(self.new.take());
            let mut is_any_done = false;
            while let Poll::Ready(Some(())) = self.running.poll_next_unpin(cx) {
                is_any_done = true;
            }
            if !is_any_done {
                return Poll::Pending;
            }
        }
        // Other connections go first.
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// A call has a handle of the calls of its connection: new ones must not stay among them.
impl Drop for Calls {
    fn drop(&mut self) {
        drop(self.new.take());
    }
}

/// Number of turns before other connections get theirs.
const TURNS_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    /// As a connection does that accepts a call and ends at once.
    #[test]
    fn call_of_connection_that_has_ended_is_dropped() {
        let new = NewCalls::default();
        let (alive, calls) = (Arc::new(()), new.clone());
        let held = Arc::downgrade(&alive);
        let connection = std::future::poll_fn(move |_| {
            let (alive, handle) = (alive.clone(), calls.clone());
            calls.execute(async move {
                std::future::pending::<()>().await;
                drop((alive, handle));
            });
            Poll::Ready(())
        });
        let mut calls = Calls::new(new);
        {
            let mut connection = Box::pin(connection);
            let mut context = Context::from_waker(std::task::Waker::noop());
            assert!(calls.poll(&mut context, pin!(connection.as_mut())).is_ready());
        }
        assert!(held.upgrade().is_some());
        drop(calls);
        assert!(held.upgrade().is_none());
    }
}
