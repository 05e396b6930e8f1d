//! Logs the state of the connection to one other node.

use std::{
    future::Future,
    io,
    pin::pin,
    time::{Duration, Instant},
};

use consensus_core::{Endpoint, NodeId, TransportError};

use crate::repeated_events::{OVER_AFTER, Occurrences, RepeatedEvents};

/// Logs established, lost and failed connections: each cause once per outage, and the number of events when it is over.
#[derive(Debug)]
pub(crate) struct ConnectionLog {
    node: NodeId,
    endpoint: Endpoint,
    /// Failed attempts, by their error.
    failures: RepeatedEvents<String>,
    /// Established and lost connections, by the error. The first ones are logged individually, as a node may be restarted.
    changes: RepeatedEvents<String>,
}

impl ConnectionLog {
    pub(crate) fn new(node: NodeId, endpoint: Endpoint) -> Self {
        Self {
            node,
            endpoint,
            failures: RepeatedEvents::new(1),
            changes: RepeatedEvents::new(CHANGES_LOGGED_EACH),
        }
    }

    pub(crate) fn log_failure(&mut self, error: &TransportError) {
        match self.failures.record(error.to_string(), Instant::now()) {
            Some(so_far) => {
                tracing::warn!(node = %self.node, %error, %so_far, "cannot connect to a node; trying again until it succeeds");
            }
            None => tracing::debug!(node = %self.node, %error, "cannot connect"),
        }
    }

    /// Logs an established connection and, when `end` is ready, its end.
    pub(crate) async fn log_until_disconnected(&mut self, end: impl Future<Output = io::Error>) {
        let (node, endpoint) = (self.node, self.endpoint.clone());
        match self.changes.record("connected".to_owned(), Instant::now()) {
            Some(_) => tracing::info!(%node, %endpoint, "connected"),
            None => tracing::debug!(%node, %endpoint, "connected"),
        }
        let (mut end, mut settled, mut quiet) =
            (pin!(end), pin!(tokio::time::sleep(SETTLED_AFTER)), pin!(tokio::time::sleep(OVER_AFTER)));
        let error = loop {
            tokio::select! {
                error = &mut end => break error,
                () = &mut settled, if !self.failures.is_empty() => {
                    let over = self.failures.end_causes(Instant::now(), |_| true);
                    self.tell(over, "connected again after failed attempts");
                }
                () = &mut quiet, if !self.changes.is_empty() => {
                    let over = self.changes.end_causes(Instant::now(), |_| true);
                    self.tell(over, "the connection is stable again after changes that were not all logged");
                }
            }
        };
        match self.changes.record(format!("disconnected: {error}"), Instant::now()) {
            Some(so_far) => tracing::info!(%node, %error, %so_far, "disconnected"),
            None => tracing::debug!(%node, %error, "disconnected"),
        }
    }

    fn tell(&self, over: Vec<(String, Occurrences)>, what: &str) {
        for (cause, times) in over {
            tracing::info!(node = %self.node, cause, %times, "{what}");
        }
    }
}

/// Age of a connection that ends an outage.
const SETTLED_AFTER: Duration = Duration::from_secs(1);
/// Established connections, and lost connections of one cause, that are logged individually.
const CHANGES_LOGGED_EACH: u64 = 5;
