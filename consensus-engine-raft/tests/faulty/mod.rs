//! Engines whose storages and state machines fail or hang on request.

#![allow(dead_code, reason = "each test uses a part of the module")]

use std::{
    io::{Read, Write},
    path::PathBuf,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use consensus_core::{
    ConsensusEngine, EngineStatus, Entry, FlushWork, LogBatch, LogId, LogIndex, LogState, LogStorage,
    Membership, NodeId, Role, Snapshot, StateMachine, StateMachineError, StorageError,
};
use consensus_engine_raft::{RaftConfig, RaftEngine};
use consensus_testkit::{Journal, JournalReader, MemLogStorage, eventually};
use consensus_transport_mem::MemNetwork;

/// A gate that lets calls pass or blocks them.
#[derive(Clone, Default)]
pub(crate) struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    /// Blocks calls from now on until [`open`](Self::open).
    pub(crate) fn close(&self) {
        *self.0.0.lock().unwrap() = true;
    }

    pub(crate) fn open(&self) {
        *self.0.0.lock().unwrap() = false;
        self.0.1.notify_all();
    }

    fn pass(&self) {
        let is_closed = self.0.0.lock().unwrap();
        drop(self.0.1.wait_while(is_closed, |is_closed| *is_closed).unwrap());
    }
}

/// Faults of a node.
#[derive(Clone, Default)]
pub(crate) struct Faults {
    /// Gate of log writes.
    pub(crate) writes: Gate,
    pub(crate) applies: Gate,
    /// No write has room, not even one without entries.
    pub(crate) has_no_room: Arc<AtomicBool>,
    pub(crate) reads_fail: Arc<AtomicBool>,
    /// Number of reads that failed.
    pub(crate) failed_reads: Arc<AtomicU64>,
    pub(crate) flushes_fail: Arc<AtomicBool>,
    pub(crate) flushes_break: Arc<AtomicBool>,
    pub(crate) snapshots_fail: Arc<AtomicBool>,
    /// Snapshots can be taken, but reading them fails.
    pub(crate) streams_fail: Arc<AtomicBool>,
    pub(crate) restores_fail: Arc<AtomicBool>,
}

pub(crate) fn set(fault: &AtomicBool, is_on: bool) {
    fault.store(is_on, Ordering::SeqCst);
}

fn is_on(fault: &AtomicBool) -> bool {
    fault.load(Ordering::SeqCst)
}

pub(crate) struct FaultyStorage {
    pub(crate) log: MemLogStorage,
    pub(crate) faults: Faults,
}

impl LogStorage for FaultyStorage {
    fn load(&self) -> Result<LogState, StorageError> {
        self.log.load()
    }

    fn write(&self, batch: LogBatch) -> Result<(), StorageError> {
        self.faults.writes.pass();
        if is_on(&self.faults.has_no_room) {
            let why = "the test filled the disk completely".to_owned();
            return Err(StorageError::NoRoom { why, batch: Box::new(batch) });
        }
        self.log.write(batch)
    }

    fn read(&self, after: LogIndex, last: LogIndex, max_bytes: u64) -> Result<Vec<Entry>, StorageError> {
        if is_on(&self.faults.reads_fail) {
            self.faults.failed_reads.fetch_add(1, Ordering::SeqCst);
            let source = std::io::Error::other("too many open files");
            return Err(StorageError::Io { context: "reading segment 7".to_owned(), source });
        }
        self.log.read(after, last, max_bytes)
    }
}

pub(crate) struct FaultyMachine {
    journal: Journal,
    faults: Faults,
}

fn failed(what: &str) -> StateMachineError {
    StateMachineError::Other(format!("the test makes {what} fail"))
}

impl StateMachine for FaultyMachine {
    fn applied(&self) -> LogId {
        self.journal.applied()
    }

    fn apply(&mut self, entries: &[Entry]) -> Result<Vec<Bytes>, StateMachineError> {
        self.faults.applies.pass();
        self.journal.apply(entries)
    }

    fn flush(&mut self) -> Result<LogId, StateMachineError> {
        self.journal.flush()
    }

    fn flush_in_background(&mut self) -> Option<FlushWork> {
        let (work, faults) = (self.journal.flush_in_background()?, self.faults.clone());
        Some(Box::new(move || match () {
            () if is_on(&faults.flushes_break) => {
                Err(StateMachineError::Broken("the test broke the state".to_owned()))
            }
            () if is_on(&faults.flushes_fail) => Err(failed("flushes")),
            () => work(),
        }))
    }

    fn snapshot(&mut self) -> Result<Box<dyn Snapshot>, StateMachineError> {
        if is_on(&self.faults.snapshots_fail) {
            return Err(failed("snapshots"));
        }
        let snapshot = self.journal.snapshot()?;
        Ok(if is_on(&self.faults.streams_fail) { Box::new(Unreadable) } else { snapshot })
    }

    fn restore(&mut self, stream: &mut dyn Read) -> Result<(), StateMachineError> {
        if is_on(&self.faults.restores_fail) {
            return Err(failed("restores"));
        }
        self.journal.restore(stream)
    }
}

struct Unreadable;

impl Snapshot for Unreadable {
    fn write_to(&mut self, out: &mut dyn Write) -> std::io::Result<()> {
        out.write_all(b"the first bytes")?;
        Err(std::io::Error::other("the test makes reads of the snapshot fail"))
    }
}

pub(crate) struct FaultyNode {
    pub(crate) engine: Arc<RaftEngine>,
    pub(crate) journal: JournalReader,
    pub(crate) log: MemLogStorage,
    pub(crate) faults: Faults,
}

impl FaultyNode {
    pub(crate) fn status(&self) -> Arc<EngineStatus> {
        self.engine.status().borrow().clone()
    }

    pub(crate) fn commands(&self) -> Vec<Bytes> {
        self.journal.commands().into_iter().map(|(_, command)| command).collect()
    }

    /// Waits until the node has applied the command.
    pub(crate) async fn applied(&self, command: &'static str) {
        eventually("the command is applied", || {
            let commands = self.commands();
            if commands.contains(&command.into()) { Ok(()) } else { Err((commands, self.status())) }
        })
        .await;
    }

    pub(crate) async fn status_when(
        &self,
        what: &str,
        is: impl Fn(&EngineStatus) -> bool,
    ) -> Arc<EngineStatus> {
        eventually(what, || {
            let status = self.status();
            if is(&status) { Ok(status) } else { Err(status) }
        })
        .await
    }
}

pub(crate) struct FaultyCluster {
    pub(crate) network: MemNetwork,
    pub(crate) nodes: Vec<FaultyNode>,
    configure: fn(&mut RaftConfig),
    /// Directory for arriving snapshots; temporary files by default.
    pub(crate) snapshot_dir: Option<PathBuf>,
}

impl FaultyCluster {
    /// Starts a cluster of `size` voters.
    pub(crate) async fn start(size: u64, configure: fn(&mut RaftConfig)) -> Self {
        let mut cluster =
            Self { network: MemNetwork::new(size), nodes: Vec::new(), configure, snapshot_dir: None };
        for _ in 0..size {
            cluster.add(Some(Membership::of_voters(0..size))).await;
        }
        cluster
    }

    /// Starts another node. Without a first configuration it waits until it is added.
    pub(crate) async fn add(&mut self, bootstrap: Option<Membership>) -> NodeId {
        let id = NodeId(self.nodes.len() as u64);
        let mut config = RaftConfig::new(id);
        config.bootstrap = bootstrap;
        config.protocol.heartbeat_interval = Duration::from_millis(20);
        config.protocol.election_timeout = Duration::from_millis(200);
        config.snapshot_retry = Duration::from_millis(50);
        config.storage_stall_limit = Some(Duration::from_millis(400));
        config.apply_stall_limit = Some(Duration::from_millis(400));
        (self.configure)(&mut config);
        if let Some(dir) = &self.snapshot_dir {
            config.snapshot_dir.clone_from(dir);
        }
        let (log, faults, journal) = (MemLogStorage::new(), Faults::default(), Journal::new());
        let reader = journal.reader();
        let storage = FaultyStorage { log: log.clone(), faults: faults.clone() };
        let machine = FaultyMachine { journal, faults: faults.clone() };
        let transport = self.network.transport(id);
        let engine =
            RaftEngine::start(config, transport, Arc::new(storage), Box::new(machine)).await.unwrap();
        self.nodes.push(FaultyNode { engine, journal: reader, log, faults });
        id
    }

    /// Waits for a leader other than `but`.
    pub(crate) async fn leader_other_than(&self, but: Option<usize>) -> usize {
        eventually("a leader", || {
            let statuses: Vec<_> = self.nodes.iter().map(FaultyNode::status).collect();
            let leads = |at: &usize| statuses[*at].role == Role::Leader && Some(*at) != but;
            (0..statuses.len()).find(leads).ok_or(statuses)
        })
        .await
    }

    pub(crate) async fn leader(&self) -> usize {
        self.leader_other_than(None).await
    }

    /// Stops all engines, so that storages and state machines can be dropped.
    pub(crate) async fn end(self) {
        for node in &self.nodes {
            node.faults.writes.open();
            node.faults.applies.open();
        }
        for node in self.nodes {
            let _ = node.engine.shutdown().await;
        }
    }
}
