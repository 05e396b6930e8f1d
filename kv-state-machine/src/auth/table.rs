//! The users and roles as of the last batch, for readers.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use tokio::sync::watch;

use super::AuthState;

/// The users and roles as of the last batch, or of a newer one that is about to be published.
#[derive(Debug)]
pub(crate) struct AuthTable {
    is_enabled: AtomicBool,
    state: Mutex<Arc<AuthState>>,
    /// Number of changes that were published.
    changes: watch::Sender<u64>,
}

impl AuthTable {
    pub(crate) fn new(state: AuthState) -> Self {
        Self {
            is_enabled: AtomicBool::new(state.is_enabled()),
            state: Mutex::new(Arc::new(state)),
            changes: watch::Sender::new(0),
        }
    }

    /// Whether permissions count. Costs no lock.
    pub(crate) fn is_enabled(&self) -> bool {
        self.is_enabled.load(Ordering::Acquire)
    }

    pub(crate) fn get(&self) -> Arc<AuthState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The users and roles, if they count.
    pub(crate) fn enabled(&self) -> Option<Arc<AuthState>> {
        self.is_enabled().then(|| self.get()).filter(|state| state.is_enabled())
    }

    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Lets readers see a change. The caller publishes the batch of the change afterwards, so that no reader sees what was
    /// written under new permissions by the old ones.
    pub(crate) fn publish(&self, state: AuthState) {
        let is_enabled = state.is_enabled();
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(state);
        self.is_enabled.store(is_enabled, Ordering::Release);
        self.changes.send_modify(|changes| *changes += 1);
    }
}
