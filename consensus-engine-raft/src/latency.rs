//! Simulated latency of storage and state machine.

use std::time::Duration;

/// Random durations of the calls of storage and state machine that run without threads
/// ([`RaftConfig::threads`](crate::RaftConfig::threads)): under tokio's paused clock, a slow disk in a repeatable run. Each
/// call is made when its duration has passed, and its result is reported then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SimulatedLatency {
    /// Seed of the durations; the same seed gives the same durations.
    pub seed: u64,
    /// Upper bound of the duration of one call; each takes between zero and this.
    pub max: Duration,
}

/// Random durations of one kind of calls.
#[derive(Debug)]
pub(crate) struct Latency {
    state: u64,
    max: Duration,
}

impl Latency {
    /// `purpose` distinguishes the kinds of calls, whose durations are independent.
    pub(crate) fn new(simulated: &SimulatedLatency, purpose: u64) -> Self {
        Self { state: mix(simulated.seed ^ mix(purpose)), max: simulated.max }
    }

    pub(crate) fn draw(&mut self) -> Duration {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let nanos = u64::try_from(self.max.as_nanos()).unwrap_or(u64::MAX).max(1);
        Duration::from_nanos(mix(self.state) % nanos)
    }
}

/// The output step of SplitMix64 (Steele et al. 2014).
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_below_the_maximum_and_follow_from_the_seed() {
        let draw = |seed, purpose| {
            let simulated = SimulatedLatency { seed, max: Duration::from_millis(3) };
            let mut latency = Latency::new(&simulated, purpose);
            (0..100).map(|_| latency.draw()).collect::<Vec<_>>()
        };
        assert!(draw(1, 1).iter().all(|time| *time < Duration::from_millis(3)));
        assert_eq!(draw(1, 1), draw(1, 1));
        assert_ne!(draw(1, 1), draw(1, 2));
        assert_ne!(draw(1, 1), draw(2, 1));
    }
}
