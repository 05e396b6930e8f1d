//! Waiting for conditions instead of fixed times.

use std::{fmt::Debug, time::Duration};

/// Waits until `condition` holds, at most 30 s. `what` names the condition in the panic message.
///
/// # Panics
/// The condition did not hold in time. The message has the last error that it returned.
pub async fn eventually<T, E: Debug>(what: &str, condition: impl FnMut() -> Result<T, E>) -> T {
    eventually_within(TIME_LIMIT, what, condition).await
}

/// Like [`eventually`], with another time limit.
pub(crate) async fn eventually_within<T, E: Debug>(
    time_limit: Duration,
    what: &str,
    mut condition: impl FnMut() -> Result<T, E>,
) -> T {
    let deadline = tokio::time::Instant::now() + time_limit;
    loop {
        match condition() {
            Ok(value) => return value,
            Err(state) if tokio::time::Instant::now() > deadline => {
                panic!("{what}: not within {time_limit:?}; last: {state:?}")
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

/// Default time limit of [`eventually`].
pub(crate) const TIME_LIMIT: Duration = Duration::from_secs(30);
