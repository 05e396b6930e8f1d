//! Three nodes under tokio's paused clock. Protocol, driver, store, the counting of leases and the dispatch of watches are the
//! real ones; the network and the log are in memory, and the time of leases is simulated time.
//!
//! ```text
//! owners of leases ─┐
//! holders of a lock ├▶ ConsensusKvDatabase ─▶ RaftEngine ─▶ MemNetwork, MemLogStorage
//! writers, readers ─┤      │ TimeSource          └─▶ Synchronized (KvStateMachine)
//! watchers ─────────┘    NodeClock
//! ```
//!
//! The thread that dispatches changes to watches is not on the simulated clock. So each apply waits until that thread has
//! delivered the changes: a watcher gets them at the simulated time of the apply.

use std::{
    collections::BTreeMap,
    io::Read,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use consensus_core::{
    Entry, LogId, NetworkTransport, NodeId, Role, Snapshot, StateMachine, StateMachineError,
};
use consensus_engine_raft::RaftEngine;
use consensus_raft_simulator::Random;
use consensus_testkit::{MemLogStorage, lease_history::Disturbance};
use consensus_transport_mem::{MemNetwork, MemTransport};
use kv_state_machine::{
    ConsensusKvDatabase, Consistency, Durability, KvAnswer, KvError, KvOperation, KvRejection,
    KvStateMachine, TimeSource, Watches,
};
use tempfile::TempDir;
use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout},
};

use crate::plan::{NODES, Plan};

pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) network: MemNetwork,
    began: Instant,
    over: AtomicBool,
    settled: AtomicBool,
    restores: Arc<AtomicU64>,
    seats: Mutex<Vec<Seat>>,
    record: Mutex<Record>,
    /// Wakes the faults: a lease was just renewed, and a leader that crashes now makes it hard to keep.
    pub(crate) crash_wanted: Notify,
}

/// Observations of the whole run.
#[derive(Default)]
struct Record {
    failure: Option<String>,
    counts: BTreeMap<&'static str, u64>,
    disturbances: Vec<Disturbance>,
}

/// A node and its disks, running or not.
struct Seat {
    log: MemLogStorage,
    dir: TempDir,
    incarnation: u64,
    clock: Arc<NodeClock>,
    node: Option<Node>,
}

/// A running node.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) id: u64,
    pub(crate) incarnation: u64,
    pub(crate) database: ConsensusKvDatabase,
    pub(crate) clock: Arc<NodeClock>,
    transport: Arc<MemTransport>,
}

impl Node {
    /// Term that the node leads.
    pub(crate) fn leads(&self) -> Option<u64> {
        let status = self.database.status().borrow().clone();
        (status.role == Role::Leader).then_some(status.term.0)
    }
}

/// Clock of a node: it drifts, and it is paused while the node is frozen, as it does for a process that is stopped.
pub(crate) struct NodeClock {
    began: Instant,
    /// Deviation in thousandths.
    drift: i64,
    frozen_at: Mutex<Option<Duration>>,
    thawed: Notify,
}

impl NodeClock {
    fn now(&self) -> Duration {
        let elapsed = || {
            let elapsed = self.began.elapsed();
            let deviation = elapsed / 1000 * u32::try_from(self.drift.unsigned_abs()).unwrap_or(0);
            if self.drift < 0 { elapsed - deviation } else { elapsed + deviation }
        };
        self.frozen_at.lock().unwrap().unwrap_or_else(elapsed)
    }

    pub(crate) fn freeze(&self) {
        let now = self.now();
        *self.frozen_at.lock().unwrap() = Some(now);
    }

    pub(crate) fn thaw(&self) {
        *self.frozen_at.lock().unwrap() = None;
        self.thawed.notify_waiters();
    }

    /// Waits while the node is frozen.
    async fn runs(&self) {
        loop {
            let thawed = self.thawed.notified();
            if self.frozen_at.lock().unwrap().is_none() {
                return;
            }
            thawed.await;
        }
    }
}

/// Reason that a request has no answer.
#[derive(Debug)]
pub(crate) enum Failure {
    Rejected(KvRejection),
    /// It was certainly not executed.
    NotExecuted,
    /// It may have been executed, or may be yet.
    Unknown,
}

impl World {
    pub(crate) async fn start(plan: Plan) -> Arc<Self> {
        let began = Instant::now();
        // On a disk the test takes many times as long.
        let memory = Path::new("/dev/shm");
        let dir = || if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        let seat = |drift: &i64| Seat {
            log: MemLogStorage::new(),
            dir: dir().expect("a directory"),
            incarnation: 0,
            clock: Arc::new(NodeClock {
                began,
                drift: *drift,
                frozen_at: Mutex::default(),
                thawed: Notify::new(),
            }),
            node: None,
        };
        let seats = Mutex::new(plan.drift.iter().map(seat).collect());
        let network = MemNetwork::new(plan.seed);
        let world = Arc::new(Self {
            plan,
            network,
            began,
            over: AtomicBool::new(false),
            settled: AtomicBool::new(false),
            restores: Arc::default(),
            seats,
            record: Mutex::default(),
            crash_wanted: Notify::new(),
        });
        for id in 0..NODES {
            world.up(id).await;
        }
        world.network.set_all_links(&world.plan.link);
        world
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap()
    }

    fn seats(&self) -> MutexGuard<'_, Vec<Seat>> {
        self.seats.lock().unwrap()
    }

    /// Simulated time since the start.
    pub(crate) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    pub(crate) fn fail(&self, why: String) {
        self.record().failure.get_or_insert(why);
    }

    pub(crate) fn failure(&self) -> Option<String> {
        self.record().failure.clone()
    }

    pub(crate) fn count(&self, what: &'static str) {
        *self.record().counts.entry(what).or_default() += 1;
    }

    pub(crate) fn counts(&self) -> BTreeMap<&'static str, u64> {
        let mut counts = self.record().counts.clone();
        match self.restores.load(Ordering::Relaxed) {
            0 => {}
            restores => drop(counts.insert("snapshot installed", restores)),
        }
        counts
    }

    /// Has clients end.
    pub(crate) fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// Says that nothing more is written.
    pub(crate) fn settle(&self) {
        self.settled.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Relaxed)
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Records a disturbance that ends now.
    pub(crate) fn disturbed_since(&self, from: Duration) {
        let disturbance = Disturbance { from, to: self.now() };
        self.record().disturbances.push(disturbance);
    }

    /// Disturbances in the order of time.
    pub(crate) fn disturbances(&self) -> Vec<Disturbance> {
        let mut disturbances = self.record().disturbances.clone();
        disturbances.sort_by_key(|disturbance| disturbance.from);
        disturbances
    }

    /// Records as a disturbance each change of leaders, and each time without one, until the task is aborted.
    pub(crate) async fn observe_leaders(self: Arc<Self>) {
        let (mut known, mut looked) = (None, self.now());
        loop {
            sleep(Duration::from_millis(10)).await;
            let leads = self.nodes().iter().filter_map(Node::leads).max();
            if leads.is_none() || leads != known {
                self.disturbed_since(looked);
            }
            (known, looked) = (leads, self.now());
        }
    }

    /// Log of a node, which it shares with all its incarnations.
    pub(crate) fn log(&self, id: u64) -> MemLogStorage {
        self.seats()[id as usize].log.clone()
    }

    pub(crate) fn nodes(&self) -> Vec<Node> {
        self.seats().iter().filter_map(|seat| seat.node.clone()).collect()
    }

    /// Leader of the newest term.
    pub(crate) fn leader(&self) -> Option<Node> {
        self.nodes().into_iter().filter(|node| node.leads().is_some()).max_by_key(Node::leads)
    }

    pub(crate) fn is_running(&self, node: &Node) -> bool {
        let seats = self.seats();
        seats[node.id as usize].node.as_ref().is_some_and(|now| now.incarnation == node.incarnation)
    }

    /// A running node.
    pub(crate) fn any_node(&self, random: &mut Random) -> Option<Node> {
        let nodes = self.nodes();
        nodes.get(random.below(nodes.len() as u64) as usize).cloned()
    }

    /// Starts a node on its disks.
    pub(crate) async fn up(&self, id: u64) {
        let (path, log, clock, incarnation) = {
            let seat = &mut self.seats()[id as usize];
            seat.incarnation += 1;
            (seat.dir.path().to_owned(), seat.log.clone(), seat.clock.clone(), seat.incarnation)
        };
        let mut machine = KvStateMachine::open(&path, NodeId(id), Durability::FromLog);
        for _ in 0..OPEN_TRIES {
            if machine.is_ok() {
                break;
            }
            // Requests, watches and threads of the incarnation before still use the store. Threads take real time.
            sleep(Duration::from_millis(10)).await;
            std::thread::sleep(Duration::from_millis(1));
            machine = KvStateMachine::open(&path, NodeId(id), Durability::FromLog);
        }
        let machine = match machine {
            Ok(machine) => machine,
            Err(error) => return self.fail(format!("node {id} does not open its store: {error}")),
        };
        let (executor, watches) = (machine.executor(), Arc::new(OnceLock::new()));
        let transport = self.network.transport(NodeId(id));
        let machine =
            Box::new(Synchronized { machine, watches: watches.clone(), restores: self.restores.clone() });
        let config = self.plan.config(id, incarnation);
        let engine = match RaftEngine::start(config, transport.clone(), Arc::new(log), machine).await {
            Ok(engine) => engine,
            Err(error) => return self.fail(format!("node {id} does not start: {error}")),
        };
        let time = clock.clone();
        let database =
            ConsensusKvDatabase::new(engine, executor).with_time_source(TimeSource::new(move || time.now()));
        let _ = watches.set(Mutex::new(database.watches().expect("a thread")));
        database.start().await.expect("the engine runs");
        self.seats()[id as usize].node = Some(Node { id, incarnation, database, clock, transport });
    }

    /// Ends the process of a node: what was in memory is lost, and nobody is told.
    pub(crate) async fn crash(&self, id: u64) {
        let Some(node) = self.seats()[id as usize].node.take() else { return };
        node.clock.thaw();
        node.transport.shutdown().await;
        let _ = node.database.shutdown().await;
    }

    /// Makes a request of a node, and waits for the response as long as a client does. The request is executed even if nobody
    /// waits for it any more.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        node: &Node,
        random: &mut Random,
        request: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let mut on_its_way = || Duration::from_micros(200 + random.below(5_000));
        let (there, back, clock) = (on_its_way(), on_its_way(), node.clock.clone());
        let asked = tokio::spawn(async move {
            sleep(there).await;
            clock.runs().await;
            let response = request.await;
            clock.runs().await;
            sleep(back).await;
            response
        });
        timeout(self.plan.time_limit, asked).await.ok()?.ok()
    }

    /// Executes an operation on the leader, or now and then on another node.
    pub(crate) async fn execute(
        &self,
        operation: KvOperation,
        random: &mut Random,
    ) -> Result<KvAnswer, Failure> {
        let leader = if random.percent(90) { self.leader() } else { None };
        let Some(node) = leader.or_else(|| self.any_node(random)) else { return Err(Failure::NotExecuted) };
        let database = node.database.clone();
        let request = async move { database.execute(operation, None, Consistency::Linearizable).await };
        match self.ask(&node, random, request).await {
            Some(Ok(answer)) => Ok(answer),
            Some(Err(KvError::Rejected(rejection))) => Err(Failure::Rejected(rejection)),
            Some(Err(KvError::Unavailable { maybe_applied: true, .. })) | None => Err(Failure::Unknown),
            Some(Err(_)) => Err(Failure::NotExecuted),
        }
    }

    /// Shuts all nodes down.
    pub(crate) async fn shut_down(&self) {
        for id in 0..NODES {
            self.crash(id).await;
        }
    }
}

/// A store whose changes are in the queues of all watches when an apply or restore returns.
struct Synchronized {
    machine: KvStateMachine,
    /// A session without watches, which tells how far the dispatcher is.
    watches: Arc<OnceLock<Mutex<Watches>>>,
    /// Number of snapshots that were installed, on all nodes.
    restores: Arc<AtomicU64>,
}

impl Synchronized {
    fn synchronize(&self) {
        let Some(watches) = self.watches.get() else { return };
        let watches = watches.lock().unwrap();
        let began = std::time::Instant::now();
        while watches.progress() != Some(watches.revision()) {
            assert!(began.elapsed() < Duration::from_secs(20), "the dispatcher does not deliver");
            std::thread::yield_now();
        }
    }
}

impl StateMachine for Synchronized {
    fn applied(&self) -> LogId {
        self.machine.applied()
    }

    fn apply(&mut self, entries: &[Entry]) -> Result<Vec<Bytes>, StateMachineError> {
        let responses = self.machine.apply(entries)?;
        self.synchronize();
        Ok(responses)
    }

    fn flush(&mut self) -> Result<LogId, StateMachineError> {
        self.machine.flush()
    }

    fn snapshot(&mut self) -> Result<Box<dyn Snapshot>, StateMachineError> {
        self.machine.snapshot()
    }

    fn restore(&mut self, stream: &mut dyn Read) -> Result<(), StateMachineError> {
        self.machine.restore(stream)?;
        self.restores.fetch_add(1, Ordering::Relaxed);
        self.synchronize();
        Ok(())
    }
}

const OPEN_TRIES: u64 = 1_000;
