//! How long storage and state machine take on the clock of a simulation.

use std::time::Duration;

/// Random times that the calls of storage and state machine take where there are no threads for them
/// ([`RaftConfig::threads`](crate::RaftConfig::threads)): under tokio's paused clock, the calls of a slow disk in a run that can
/// be repeated. Each call is made when its time is over, and what it returned is reported then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SimulatedLatency {
    /// The same seed gives the same times.
    pub seed: u64,
    /// Longest time of one call; each takes between nothing and this.
    pub max: Duration,
}

/// The times of one kind of calls, drawn one after another.
#[derive(Debug)]
pub(crate) struct Latency {
    state: u64,
    max: Duration,
}

impl Latency {
    /// `purpose` keeps the kinds of calls apart: their times are independent.
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
    fn drawn_times_are_within_the_bound_and_follow_from_the_seed() {
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
