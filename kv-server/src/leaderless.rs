//! Notices that a node has had no leader for long: it may not hear of new events, and its watchers should go elsewhere.

use std::{sync::Arc, time::Duration};

use consensus_core::EngineStatus;
use tokio::sync::watch;

/// Ends when there has been no leader for a while.
pub(crate) async fn leaderless(mut status: watch::Receiver<Arc<EngineStatus>>) {
    loop {
        let has_none = status.wait_for(|status| status.leader.is_none()).await.is_ok();
        let elected = status.wait_for(|status| status.leader.is_some());
        match tokio::time::timeout(LEADERLESS_MAX, async { elected.await.is_ok() }).await {
            Ok(true) if has_none => {}
            Err(_) => return,
            // The engine has ended, and soon this node.
            Ok(_) => return std::future::pending().await,
        }
    }
}

/// As long as an election may take.
const LEADERLESS_MAX: Duration = Duration::from_secs(3);
