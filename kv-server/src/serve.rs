//! Runs a node until a signal or a failure ends it.

use std::{convert::Infallible, time::Duration};

use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{
    exit::{Exit, Failure},
    node::Node,
    watchdog,
};

/// How a node ended.
#[derive(Debug)]
pub(crate) enum End {
    /// A signal with this number stopped it, gracefully.
    Signal(i32),
    /// It did not start, or could not go on.
    Failed(Failure),
}

/// When a node counts as ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ready {
    /// When it serves clients, whether or not there is a leader.
    Started,
    /// When the cluster knows where clients reach it, as in etcd.
    Published,
}

/// Starts a node and serves until a signal or a failure. A service manager that waits for it is told when the node is ready, and its
/// watchdog while the node makes progress.
pub(crate) async fn serve<E: Into<Failure>>(
    start: impl Future<Output = Result<Node, E>>,
    ready: Ready,
) -> End {
    let mut signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(error) => return End::Failed(format!("cannot listen for signals: {error}").into()),
    };
    // A start may wait for other nodes.
    let started = tokio::select! {
        started = start => started,
        number = signals.next() => return End::Signal(number),
    };
    let node = match started {
        Ok(node) => node,
        Err(error) => return End::Failed(error.into()),
    };
    if ready == Ready::Started {
        notify(NotifyState::Ready);
    }
    let announced = async {
        if ready == Ready::Published && node.published().await {
            // Harnesses and scripts wait for these words of etcd.
            tracing::info!("ready to serve client requests");
            notify(NotifyState::Ready);
        }
        std::future::pending::<Infallible>().await
    };
    let end = tokio::select! {
        number = signals.next() => End::Signal(number),
        why = node.failed() => End::Failed(Failure { why: format!("stopping: {why}"), exit: Exit::Failed }),
        never = announced => match never {},
        never = feed_watchdog(&node) => match never {},
    };
    notify(NotifyState::Stopping);
    tracing::info!("stopping");
    if tokio::time::timeout(SHUTDOWN_MAX, node.shutdown()).await.is_err() {
        tracing::warn!("not everything ended in time; what is acknowledged is on disk");
    }
    end
}

/// Tells the watchdog of the service manager, if there is one, that the node makes progress.
async fn feed_watchdog(node: &Node) -> Infallible {
    match sd_notify::watchdog_enabled() {
        Some(limit) => {
            watchdog::feed(limit, async || node.responds(limit).await, || notify(NotifyState::Watchdog)).await
        }
        None => std::future::pending().await,
    }
}

/// The signals that stop the program.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        let (terminate, interrupt) = (SignalKind::terminate(), SignalKind::interrupt());
        Ok(Self { terminate: signal(terminate)?, interrupt: signal(interrupt)? })
    }

    /// Number of the next signal.
    async fn next(&mut self) -> i32 {
        tokio::select! {
            _ = self.terminate.recv() => SignalKind::terminate().as_raw_value(),
            _ = self.interrupt.recv() => SignalKind::interrupt().as_raw_value(),
        }
    }
}

/// Tells the service manager, if there is one that wants to know.
fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "cannot tell the service manager");
    }
}

/// A graceful end takes no longer than this.
const SHUTDOWN_MAX: Duration = Duration::from_millis(4500);
