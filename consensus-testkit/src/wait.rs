//! Waiting for conditions, not for time.

use std::{fmt::Debug, time::Duration};

/// Awaits until `condition` holds, at most 30 s; then panics with `what` and what `condition` last returned.
///
/// # Panics
/// The condition did not come to hold.
pub async fn eventually<T, E: Debug>(what: &str, condition: impl FnMut() -> Result<T, E>) -> T {
    eventually_within(PATIENCE, what, condition).await
}

/// The same with another patience.
pub(crate) async fn eventually_within<T, E: Debug>(
    patience: Duration,
    what: &str,
    mut condition: impl FnMut() -> Result<T, E>,
) -> T {
    let deadline = tokio::time::Instant::now() + patience;
    loop {
        match condition() {
            Ok(value) => return value,
            Err(state) if tokio::time::Instant::now() > deadline => {
                panic!("{what}: not within {patience:?}; last: {state:?}")
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

/// How long to wait for what comes by itself.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
