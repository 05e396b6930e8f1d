//! Builder of an engine, with methods for the most frequent settings.

use std::{path::PathBuf, sync::Arc, time::Duration};

use consensus_core::{LogStorage, Membership, NetworkTransport, NodeId, StateMachine};
use consensus_raft_protocol::ConfigError;

use crate::{RaftConfig, RaftEngine, StartError, flight::FlightRecorder};

/// Collects the settings of one node; see [`RaftEngine::builder`]. [`configure`](Self::configure) sets those that have no
/// method of their own.
#[derive(Clone, Debug)]
#[must_use = "no engine runs before `start`"]
pub struct RaftBuilder(RaftConfig);

impl RaftBuilder {
    pub(crate) fn new(id: NodeId) -> Self {
        Self(RaftConfig::new(id))
    }

    /// Sets the first voters of the cluster, the same on every node. Used only if the log is empty.
    pub fn voters(self, voters: impl IntoIterator<Item = u64>) -> Self {
        self.members(Membership::of_voters(voters))
    }

    /// Sets the first members of the cluster, with endpoints, witnesses, learners or priorities.
    pub fn members(self, members: Membership) -> Self {
        self.configure(|config| config.bootstrap = Some(members))
    }

    /// Sets the election timeout and the interval of heartbeats; see [`Config`](consensus_raft_protocol::Config).
    pub fn timeouts(self, election_timeout: Duration, heartbeat_interval: Duration) -> Self {
        self.configure(|config| {
            config.protocol.election_timeout = election_timeout;
            config.protocol.heartbeat_interval = heartbeat_interval;
        })
    }

    /// Enables lease reads, for clocks whose speeds differ by at most `percent`.
    pub fn lease_drift_percent(self, percent: u32) -> Self {
        self.configure(|config| config.protocol.lease_drift_percent = percent)
    }

    /// Forwards proposals on followers to the leader.
    pub fn forward_proposals(self) -> Self {
        self.configure(|config| config.forward_proposals = true)
    }

    /// Sets the directory for snapshots while they arrive.
    pub fn snapshot_dir(self, dir: impl Into<PathBuf>) -> Self {
        self.configure(|config| config.snapshot_dir = dir.into())
    }

    /// Calls storage and state machine on the engine's own task, for those in memory, whose calls do not block; see
    /// [`RaftConfig::threads`].
    pub fn without_threads(self) -> Self {
        self.configure(|config| config.threads = false)
    }

    /// Records all inputs of the protocol, for `raft-replay`.
    pub fn flight_recorder(self, recorder: FlightRecorder) -> Self {
        self.configure(|config| config.flight_recorder = Some(recorder))
    }

    /// Changes any setting.
    pub fn configure(mut self, change: impl FnOnce(&mut RaftConfig)) -> Self {
        change(&mut self.0);
        self
    }

    /// Validates and returns the settings.
    ///
    /// # Errors
    /// The first invalid setting, and its allowed values.
    pub fn build(self) -> Result<RaftConfig, ConfigError> {
        self.0.validate()?;
        Ok(self.0)
    }

    /// Calls [`RaftEngine::start`] with these settings.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(
        self,
        transport: Arc<dyn NetworkTransport>,
        storage: impl LogStorage,
        machine: impl StateMachine,
    ) -> Result<Arc<RaftEngine>, StartError> {
        RaftEngine::start(self.0, transport, Arc::new(storage), Box::new(machine)).await
    }

    /// Calls [`RaftEngine::start_witness`] with these settings.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start_witness(
        self,
        transport: Arc<dyn NetworkTransport>,
        storage: impl LogStorage,
    ) -> Result<Arc<RaftEngine>, StartError> {
        RaftEngine::start_witness(self.0, transport, Arc::new(storage)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builder_methods_set_their_settings() {
        let ms = Duration::from_millis;
        let recorder = FlightRecorder { dir: "flight".into(), bytes_max: 1 << 20 };
        let config = RaftEngine::builder(NodeId(2))
            .voters([1, 2, 3])
            .timeouts(ms(150), ms(20))
            .lease_drift_percent(5)
            .forward_proposals()
            .snapshot_dir("snapshots")
            .without_threads()
            .flight_recorder(recorder)
            .configure(|config| config.compact_after_entries = 7)
            .build()
            .unwrap();
        assert_eq!(config.protocol.id, NodeId(2));
        assert_eq!(config.bootstrap, Some(Membership::of_voters([1, 2, 3])));
        assert_eq!((config.protocol.election_timeout, config.protocol.heartbeat_interval), (ms(150), ms(20)));
        assert_eq!((config.protocol.lease_drift_percent, config.forward_proposals), (5, true));
        assert_eq!((config.snapshot_dir, config.compact_after_entries), ("snapshots".into(), 7));
        assert!(!config.threads);
        assert_eq!(config.flight_recorder.unwrap().dir, PathBuf::from("flight"));
    }

    #[test]
    fn invalid_setting_is_named() {
        let wrong = |change: fn(&mut RaftConfig)| {
            RaftEngine::builder(NodeId(1)).configure(change).build().map(|_| ()).map_err(|error| error.key)
        };
        assert_eq!(wrong(|_| ()), Ok(()));
        assert_eq!(wrong(|config| config.protocol.lease_drift_percent = 51), Err("lease_drift_percent"));
        assert_eq!(wrong(|config| config.proposals_max = 0), Err("proposals_max"));
        assert_eq!(
            wrong(|config| config.command_bytes_max = config.proposal_bytes_max + 1),
            Err("proposal_bytes_max")
        );
        assert_eq!(wrong(|config| config.snapshot_chunk_bytes = 0), Err("snapshot_chunk_bytes"));
        assert_eq!(wrong(|config| config.apply_entries_max = 0), Err("apply_entries_max"));
        assert_eq!(
            wrong(|config| config.storage_stall_limit = Some(Duration::ZERO)),
            Err("storage_stall_limit")
        );
        assert_eq!(wrong(|config| config.apply_stall_limit = Some(Duration::MAX)), Err("apply_stall_limit"));
        let small = |config: &mut RaftConfig| {
            config.flight_recorder = Some(FlightRecorder { dir: PathBuf::new(), bytes_max: (1 << 20) - 1 });
        };
        assert_eq!(wrong(small), Err("flight_recorder.bytes_max"));
    }
}
