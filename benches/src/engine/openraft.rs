//! openraft 0.9, in the shape and with the configuration of its own `cluster_benchmark`: three nodes of one process, the
//! log in memory, a machine that keeps nothing, each message a call of the target's handle. Where that one holds its log
//! in a tree behind an asynchronous lock and its machine behind another, this one has a ring and no lock for the machine.

use std::{
    collections::{BTreeSet, VecDeque},
    fmt::Debug,
    io::Cursor,
    ops::{Bound, RangeBounds},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use openraft::{
    Config, Entry, EntryPayload, LogId, OptionalSend, Raft, RaftLogReader, RaftNetwork, RaftNetworkFactory,
    RaftSnapshotBuilder, Snapshot, SnapshotMeta, StorageError, StoredMembership, Vote,
    error::{InstallSnapshotError, RPCError, RaftError, RemoteError},
    network::RPCOption,
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
        VoteRequest, VoteResponse,
    },
    storage::{LogFlushed, LogState, RaftLogStorage, RaftStateMachine},
};

use super::Cluster;

openraft::declare_raft_types!(Types: D = u64, R = (), NodeId = u64, Node = ());

/// What a call of another node returns.
type Answer<T, E> = Result<T, RPCError<u64, (), E>>;

#[derive(Clone)]
pub(crate) struct Openraft {
    leader: Raft<Types>,
    nodes: Arc<Vec<Raft<Types>>>,
}

impl Cluster for Openraft {
    async fn start() -> Self {
        let config = Config {
            election_timeout_min: 200,
            election_timeout_max: 2000,
            purge_batch_size: 1024,
            ..Config::default()
        };
        let config = Arc::new(config.validate().expect("a valid configuration"));
        let router = Router::default();
        let mut nodes = Vec::new();
        for id in 0..3 {
            let (log, machine) = (Log::default(), Machine::default());
            nodes.push(Raft::new(id, config.clone(), router.clone(), log, machine).await.expect("a node"));
        }
        router.0.set(nodes.clone()).ok().expect("it is set once");
        nodes[0].initialize(BTreeSet::from([0, 1, 2])).await.expect("a new cluster");
        for node in &nodes {
            // The membership, and the leader's first entry.
            let wait = node.wait(Some(Duration::from_secs(10)));
            wait.applied_index(Some(1), "a leader").await.expect("a leader");
        }
        let leader = nodes[0].current_leader().await.expect("it was waited for");
        Self { leader: nodes[leader as usize].clone(), nodes: Arc::new(nodes) }
    }

    async fn propose(&self) {
        self.leader.client_write(7).await.expect("it is committed");
    }

    async fn stop(self) {
        for node in &*self.nodes {
            node.shutdown().await.expect("an orderly end");
        }
    }
}

/// All nodes, by id; known once they are started.
#[derive(Clone, Default)]
struct Router(Arc<OnceLock<Vec<Raft<Types>>>>);

struct Peer {
    id: u64,
    node: Raft<Types>,
}

impl RaftNetworkFactory<Types> for Router {
    type Network = Peer;

    async fn new_client(&mut self, id: u64, _: &()) -> Peer {
        Peer { id, node: self.0.get().expect("it is set before there is a leader")[id as usize].clone() }
    }
}

impl RaftNetwork<Types> for Peer {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        _: RPCOption,
    ) -> Answer<AppendEntriesResponse<u64>, RaftError<u64>> {
        Ok(self.node.append_entries(request).await.map_err(|error| RemoteError::new(self.id, error))?)
    }

    async fn install_snapshot(
        &mut self,
        request: InstallSnapshotRequest<Types>,
        _: RPCOption,
    ) -> Answer<InstallSnapshotResponse<u64>, RaftError<u64, InstallSnapshotError>> {
        Ok(self.node.install_snapshot(request).await.map_err(|error| RemoteError::new(self.id, error))?)
    }

    async fn vote(
        &mut self,
        request: VoteRequest<u64>,
        _: RPCOption,
    ) -> Answer<VoteResponse<u64>, RaftError<u64>> {
        Ok(self.node.vote(request).await.map_err(|error| RemoteError::new(self.id, error))?)
    }
}

/// One log, shared by the node and its replication tasks.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<LogContents>>);

#[derive(Default)]
struct LogContents {
    vote: Option<Vote<u64>>,
    purged: Option<LogId<u64>>,
    /// What follows `purged`, without gaps.
    entries: VecDeque<Entry<Types>>,
}

impl Log {
    fn lock(&self) -> MutexGuard<'_, LogContents> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LogContents {
    /// Where the entry of this index is in `entries`, or would be.
    fn position(&self, index: u64) -> usize {
        let first = self.purged.map_or(0, |id| id.index + 1);
        (index.saturating_sub(first) as usize).min(self.entries.len())
    }
}

impl RaftLogReader<Types> for Log {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> Result<Vec<Entry<Types>>, StorageError<u64>> {
        let log = self.lock();
        let from = match range.start_bound() {
            Bound::Included(index) => log.position(*index),
            Bound::Excluded(index) => log.position(*index + 1),
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(index) => log.position(*index + 1),
            Bound::Excluded(index) => log.position(*index),
            Bound::Unbounded => log.entries.len(),
        };
        Ok(log.entries.range(from..to.max(from)).cloned().collect())
    }
}

impl RaftLogStorage<Types> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, StorageError<u64>> {
        let log = self.lock();
        let last_log_id = log.entries.back().map(|entry| entry.log_id).or(log.purged);
        Ok(LogState { last_purged_log_id: log.purged, last_log_id })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote<u64>) -> Result<(), StorageError<u64>> {
        self.lock().vote = Some(*vote);
        Ok(())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote<u64>>, StorageError<u64>> {
        Ok(self.lock().vote)
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<Types>) -> Result<(), StorageError<u64>>
    where
        I: IntoIterator<Item = Entry<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        self.lock().entries.extend(entries);
        callback.log_io_completed(Ok(()));
        Ok(())
    }

    async fn truncate(&mut self, since: LogId<u64>) -> Result<(), StorageError<u64>> {
        let mut log = self.lock();
        let kept = log.position(since.index);
        log.entries.truncate(kept);
        Ok(())
    }

    async fn purge(&mut self, upto: LogId<u64>) -> Result<(), StorageError<u64>> {
        let mut log = self.lock();
        let gone = log.position(upto.index + 1);
        log.entries.drain(..gone);
        log.purged = Some(upto);
        Ok(())
    }
}

/// Knows only what it applied last, so that its snapshots are empty: what they are of says it all.
#[derive(Default)]
struct Machine {
    applied: Option<LogId<u64>>,
    membership: StoredMembership<u64, ()>,
    /// The last one, its builder's too.
    snapshot: Arc<Mutex<Option<SnapshotMeta<u64, ()>>>>,
}

/// Builds the snapshot that the machine asked for.
struct Builder {
    meta: SnapshotMeta<u64, ()>,
    snapshot: Arc<Mutex<Option<SnapshotMeta<u64, ()>>>>,
}

fn snapshot_of(meta: SnapshotMeta<u64, ()>) -> Snapshot<Types> {
    Snapshot { meta, snapshot: Box::default() }
}

impl RaftSnapshotBuilder<Types> for Builder {
    async fn build_snapshot(&mut self) -> Result<Snapshot<Types>, StorageError<u64>> {
        *self.snapshot.lock().unwrap_or_else(PoisonError::into_inner) = Some(self.meta.clone());
        Ok(snapshot_of(self.meta.clone()))
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotBuilder = Builder;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<LogId<u64>>, StoredMembership<u64, ()>), StorageError<u64>> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<()>, StorageError<u64>>
    where
        I: IntoIterator<Item = Entry<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let apply = |entry: Entry<Types>| {
            self.applied = Some(entry.log_id);
            if let EntryPayload::Membership(membership) = entry.payload {
                self.membership = StoredMembership::new(self.applied, membership);
            }
        };
        Ok(entries.into_iter().map(apply).collect())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let snapshot_id = self.applied.map_or_else(String::new, |id| id.to_string());
        let (last_log_id, last_membership) = (self.applied, self.membership.clone());
        Builder {
            meta: SnapshotMeta { last_log_id, last_membership, snapshot_id },
            snapshot: self.snapshot.clone(),
        }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError<u64>> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta<u64, ()>,
        _: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError<u64>> {
        (self.applied, self.membership) = (meta.last_log_id, meta.last_membership.clone());
        *self.snapshot.lock().unwrap_or_else(PoisonError::into_inner) = Some(meta.clone());
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<Types>>, StorageError<u64>> {
        let last = self.snapshot.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(last.map(snapshot_of))
    }
}
