//! Simulated latency of storage and state machine.

use std::time::Duration;

use tokio::{sync::watch, time::sleep};

/// Random durations of the calls of storage and state machine that run without threads
/// ([`RaftConfig::threads`](crate::RaftConfig::threads)): under tokio's paused clock, a slow disk in a repeatable run. Each
/// call is made when its duration has passed, and its result is reported then.
#[derive(Clone, Debug)]
pub struct SimulatedLatency {
    /// Seed of the durations; the same seed gives the same durations.
    pub seed: u64,
    /// Upper bound of the duration of one call; each takes between zero and this.
    pub max: Duration,
    /// Switches that make the calls hang.
    pub hangs: SimulatedHangs,
}

/// Switches that make all calls of a storage or a state machine hang: a disk that does not respond, in a repeatable run.
/// Clones share the switches.
///
/// A call that hangs has had no effect yet; it is made when its switch is off again. An engine that is shut down waits for it.
#[derive(Clone, Debug, Default)]
pub struct SimulatedHangs {
    writes: watch::Sender<bool>,
    machine: watch::Sender<bool>,
}

impl SimulatedHangs {
    /// Makes writes of the log hang from now on, or lets them go on.
    pub fn hang_writes(&self, hang: bool) {
        self.writes.send_replace(hang);
    }

    /// Makes calls of the state machine hang from now on, or lets them go on.
    pub fn hang_machine(&self, hang: bool) {
        self.machine.send_replace(hang);
    }
}

/// Random durations of one kind of calls.
#[derive(Debug)]
pub(crate) struct Latency {
    state: u64,
    max: Duration,
    hangs: watch::Sender<bool>,
}

impl Latency {
    /// Latency of writes of the log.
    pub(crate) fn of_writes(simulated: &SimulatedLatency) -> Self {
        Self::new(simulated, 1, simulated.hangs.writes.clone())
    }

    /// Latency of calls of the state machine.
    pub(crate) fn of_machine(simulated: &SimulatedLatency) -> Self {
        Self::new(simulated, 2, simulated.hangs.machine.clone())
    }

    /// Latency of work in the background.
    pub(crate) fn of_background(simulated: &SimulatedLatency) -> Self {
        Self::new(simulated, 3, watch::Sender::default())
    }

    /// `purpose` distinguishes the kinds of calls, whose durations are independent.
    fn new(simulated: &SimulatedLatency, purpose: u64, hangs: watch::Sender<bool>) -> Self {
        Self { state: mix(simulated.seed ^ mix(purpose)), max: simulated.max, hangs }
    }

    /// Waits as long as the next call takes.
    pub(crate) async fn pass(&mut self) {
        sleep(self.draw()).await;
        // Fails only without a sender, and `self` has one.
        let _ = self.hangs.subscribe().wait_for(|hangs| !hangs).await;
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
    use tokio::time::timeout;

    use super::*;

    fn simulated(seed: u64) -> SimulatedLatency {
        SimulatedLatency { seed, max: Duration::from_millis(3), hangs: SimulatedHangs::default() }
    }

    #[test]
    fn durations_are_below_the_maximum_and_follow_from_the_seed() {
        let draw = |mut latency: Latency| (0..100).map(|_| latency.draw()).collect::<Vec<_>>();
        let writes = draw(Latency::of_writes(&simulated(1)));
        assert!(writes.iter().all(|time| *time < Duration::from_millis(3)));
        assert_eq!(writes, draw(Latency::of_writes(&simulated(1))));
        assert_ne!(writes, draw(Latency::of_machine(&simulated(1))));
        assert_ne!(writes, draw(Latency::of_writes(&simulated(2))));
    }

    #[tokio::test(start_paused = true)]
    async fn call_hangs_until_its_switch_is_off() {
        let simulated = simulated(1);
        let mut writes = Latency::of_writes(&simulated);
        simulated.hangs.hang_machine(true);
        writes.pass().await;
        simulated.hangs.hang_writes(true);
        let hour = Duration::from_secs(60 * 60);
        assert!(timeout(hour, writes.pass()).await.is_err(), "it hangs");
        simulated.hangs.hang_writes(false);
        assert!(timeout(hour, writes.pass()).await.is_ok(), "it goes on");
    }
}
