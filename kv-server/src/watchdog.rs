//! Answers to the watchdog of the service manager, as long as the node makes progress.
//!
//! systemd ends a service that has `WatchdogSec=` and says nothing for that long, and starts it again. A timer that says it always would
//! only show that the timer runs. So it is said when the engine's own task has answered a question, on the runtime that serves clients, and
//! while no call of the state machine is stuck. A disk that completes no writes is no reason: a restart does not cure it, the node says so in
//! its status, another member becomes the leader, and the node goes on when the disk does.

use std::{convert::Infallible, time::Duration};

/// Calls `tell` several times within each `limit`, as long as `responds` returns true within half of it.
pub(crate) async fn feed(
    limit: Duration,
    responds: impl AsyncFn() -> bool,
    mut tell: impl FnMut(),
) -> Infallible {
    let mut was_well = true;
    loop {
        let is_well = tokio::time::timeout(limit / 2, responds()).await == Ok(true);
        if is_well {
            tell();
        } else if was_well {
            tracing::error!(
                ?limit,
                "the engine does not respond; if it stays so, the watchdog ends this process"
            );
        }
        was_well = is_well;
        tokio::time::sleep(limit / PER_LIMIT).await;
    }
}

/// Number of pauses within the limit.
const PER_LIMIT: u32 = 4;

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::time::{Instant, timeout};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    /// Times, in seconds, at which the watchdog is told within ten limits. `responds` gets the time as well.
    async fn told(responds: impl AsyncFn(u64) -> bool) -> Vec<u64> {
        let start = Instant::now();
        let told = Cell::new(Vec::new());
        let tell = || {
            let mut times = told.take();
            times.push(start.elapsed().as_secs());
            told.set(times);
        };
        let _ =
            timeout(LIMIT * 10, feed(LIMIT, async || responds(start.elapsed().as_secs()).await, tell)).await;
        told.take()
    }

    #[tokio::test(start_paused = true)]
    async fn engine_that_responds_is_told_of_several_times_in_each_limit() {
        let times = told(async |_| true).await;
        assert!(times.len() >= 40 && times.windows(2).all(|pair| pair[1] - pair[0] <= 20), "{times:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn engine_that_responds_no_more_is_told_of_no_more() {
        let times = told(async |now| {
            if now >= 120 {
                std::future::pending::<()>().await;
            }
            true
        });
        let times = times.await;
        assert!(*times.last().unwrap() < 120 && times.len() > 4, "{times:?}");
        assert!(told(async |_| false).await.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn engine_that_responds_again_is_told_of_again() {
        let times = told(async |now| !(100..200).contains(&now)).await;
        assert!(!times.iter().any(|time| (100..200).contains(time)), "{times:?}");
        assert!(times.iter().any(|time| *time >= 200), "{times:?}");
    }
}
