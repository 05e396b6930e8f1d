//! The nodes of a cluster: starts, shutdowns and crashes.

use std::{
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use consensus_core::{
    ConsensusEngine, Endpoint, EngineStatus, Health, LogId, Membership, NetworkTransport, NodeId, Role,
    StorageError, StorageId,
};
use consensus_engine_raft::{RaftEngine, SimulatedHangs, StartError};
use consensus_raft_simulator::Random;
use consensus_testkit::SimDir;
use consensus_transport_mem::MemNetwork;
use tokio::time::{Instant, sleep, timeout};

use super::{
    Plan, Record,
    addressed::Addressed,
    boundary::{Addresses, Boundary, Crash, WatchedLog},
    log_disk::{Files, LogDisk, new_log},
    record::{Panics, View, Watched},
};

pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) network: MemNetwork,
    pub(crate) over: AtomicBool,
    began: Instant,
    record: Arc<Mutex<Record>>,
    seats: Mutex<Vec<Seat>>,
    addresses: Arc<Addresses>,
    /// Held while a node has a damaged log; one at a time.
    pub(crate) damaging: tokio::sync::Mutex<()>,
    /// Held by the procedure that changes members; one at a time.
    pub(crate) changing: tokio::sync::Mutex<()>,
    /// Held while a node is stalled; one at a time.
    pub(crate) stalling: tokio::sync::Mutex<()>,
}

/// A node and its disks, running or not.
struct Seat {
    /// Content of the log's disk while the node is down.
    log: Files,
    machine: SimDir,
    lives: u64,
    moves: u16,
    /// Number of times that the disks were emptied. After that the node joins.
    wipes: u64,
    node: Option<Node>,
    /// A fault is being injected into the node.
    busy: bool,
}

/// A copy of the disks of a node.
pub(crate) struct Disks {
    log: Files,
    machine: SimDir,
}

/// A running node.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) id: u64,
    pub(crate) engine: Arc<RaftEngine>,
    pub(crate) view: Arc<Mutex<View>>,
    pub(crate) panics: Arc<Panics>,
    pub(crate) boundary: Arc<Boundary>,
    /// Switches of calls that hang, without an effect if calls have no latency.
    pub(crate) hangs: SimulatedHangs,
    transport: Arc<Addressed>,
}

impl Node {
    pub(crate) fn leads(&self) -> bool {
        self.status().role == Role::Leader
    }

    pub(crate) fn status(&self) -> Arc<EngineStatus> {
        self.engine.status().borrow().clone()
    }

    pub(crate) fn health(&self) -> Health {
        self.status().health.clone()
    }

    /// Whether the simulation gave the node a reason to stop.
    fn may_be_fatal(&self) -> bool {
        self.panics.happened() || self.boundary.log.has_failed() || self.boundary.power_is_lost()
    }
}

impl World {
    pub(crate) async fn start(plan: Plan) -> Arc<Self> {
        let seat = |id| Seat {
            log: new_log(NodeId(id), Self::storage(id, 0)),
            machine: SimDir::new(),
            lives: 0,
            moves: 0,
            wipes: 0,
            node: None,
            busy: false,
        };
        let seats = Mutex::new((0..plan.nodes).map(seat).collect());
        let world = Arc::new(Self {
            network: MemNetwork::new(plan.seed),
            plan,
            over: AtomicBool::new(false),
            began: Instant::now(),
            record: Arc::default(),
            seats,
            addresses: Arc::default(),
            damaging: tokio::sync::Mutex::default(),
            changing: tokio::sync::Mutex::default(),
            stalling: tokio::sync::Mutex::default(),
        });
        (0..world.plan.nodes).for_each(|id| world.addresses.set(id, Plan::port(id, 0)));
        for id in 0..world.plan.voters {
            world.up(id).await.expect("an empty disk");
        }
        for (from, to) in
            (0..world.plan.nodes).flat_map(|from| (0..world.plan.nodes).map(move |to| (from, to)))
        {
            world.network.set_link(NodeId(from), NodeId(to), world.plan.link.clone());
        }
        world
    }

    pub(crate) fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap()
    }

    fn seats(&self) -> MutexGuard<'_, Vec<Seat>> {
        self.seats.lock().unwrap()
    }

    pub(crate) fn now_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    pub(crate) fn end_clients(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// Awaits a call, which must return in time.
    pub(crate) async fn completes<T>(&self, what: &str, answer: impl Future<Output = T>) -> Option<T> {
        let answer = timeout(FOREVER, answer).await.ok();
        if answer.is_none() {
            self.record().fail(format!("{what} does not return within {FOREVER:?}"));
        }
        answer
    }

    pub(crate) fn nodes(&self) -> Vec<Node> {
        self.seats().iter().filter_map(|seat| seat.node.clone()).collect()
    }

    /// Leader of the newest term.
    pub(crate) fn leader(&self) -> Option<Node> {
        let term = |node: &Node| node.status().term;
        self.nodes().into_iter().filter(Node::leads).max_by_key(term)
    }

    /// Reserves a node for a fault, unless it is reserved already or down.
    pub(crate) fn take(&self, id: u64) -> Option<Node> {
        let mut seats = self.seats();
        let seat = seats.get_mut(id as usize).filter(|seat| !seat.busy)?;
        seat.busy = seat.node.is_some();
        seat.node.clone()
    }

    pub(crate) fn give_back(&self, id: u64) {
        self.seats()[id as usize].busy = false;
    }

    /// Starts a node on its disks.
    pub(crate) async fn up(&self, id: u64) -> Result<(), StartError> {
        self.up_until(id, None).await
    }

    /// Starts a node; the power may be lost at a given step.
    pub(crate) async fn up_until(&self, id: u64, crash: Option<Crash>) -> Result<(), StartError> {
        let (config, files, dir, incarnation) = {
            let seat = &mut self.seats()[id as usize];
            seat.lives += 1;
            let mut config = self.plan.config(id, seat.lives);
            config.bootstrap = config.bootstrap.filter(|_| seat.wipes == 0);
            (config, seat.log.clone(), seat.machine.clone(), seat.lives)
        };
        let hangs =
            config.simulated_latency.as_ref().map(|latency| latency.hangs.clone()).unwrap_or_default();
        let random = Random::new(self.plan.seed, 1000 * (1 + id) + incarnation);
        let log = LogDisk::open(NodeId(id), &files, random)?;
        let boundary = Boundary::new(id, log, dir, self.record.clone(), crash);
        let machine =
            Watched::open(boundary.clone()).map_err(|error| StorageError::Failed(error.to_string()))?;
        let (view, panics) = (machine.view.clone(), machine.panics.clone());
        let (network, addresses) = (self.network.transport(NodeId(id)), self.addresses.clone());
        let transport = Arc::new(Addressed::new(network, addresses, self.plan.nodes, self.record.clone()));
        let storage = Arc::new(WatchedLog(boundary.clone()));
        let started = RaftEngine::start(config, transport.clone(), storage, Box::new(machine)).await;
        let engine = match started {
            Ok(engine) => engine,
            Err(error) => {
                let interrupted = boundary.power_is_lost();
                self.power_lost_at(id, &boundary);
                transport.shutdown().await;
                return if interrupted { Box::pin(self.up(id)).await } else { Err(error) };
            }
        };
        let _ = transport.engine.set(Arc::downgrade(&engine));
        self.seats()[id as usize].node = Some(Node { id, engine, view, panics, boundary, hangs, transport });
        Ok(())
    }

    /// Starts a node, which must succeed.
    pub(crate) async fn up_again(&self, id: u64) {
        if let Err(error) = self.up(id).await {
            self.record().fail(format!("node {id} does not start again: {error}"));
        }
    }

    /// Replaces the content of the disks by what a crash leaves.
    fn power_lost_at(&self, id: u64, boundary: &Boundary) {
        let log = boundary.log.lose_power();
        self.stopped_at(id, boundary, log);
    }

    fn stopped_at(&self, id: u64, boundary: &Boundary, log: Files) {
        let seat = &mut self.seats()[id as usize];
        let mut random = Random::new(self.plan.seed, 1_000_000 * (1 + id) + seat.lives);
        seat.log = log;
        seat.machine = boundary.dir.image(|bound| random.below(bound));
        boundary.dir.lose_power_after(0);
    }

    /// Loses the power of a node: memory and messages in transit are lost; its disks keep their present content.
    pub(crate) async fn lose_power(&self, id: u64) {
        let Some(node) = self.seats()[id as usize].node.take() else { return };
        // The old engine may still run, but it is not part of the cluster any more and can make nothing durable.
        self.power_lost_at(id, &node.boundary);
        node.transport.shutdown().await;
        let _ = self.completes("the shutdown of a lost node", node.engine.shutdown()).await;
    }

    /// Ends the process without a shutdown: its unsynced writes survive, including the mark.
    pub(crate) async fn kill(&self, id: u64) {
        let Some(node) = self.seats()[id as usize].node.take() else { return };
        let log = node.boundary.log.close();
        self.stopped_at(id, &node.boundary, log);
        node.transport.shutdown().await;
        let _ = self.completes("the shutdown of a killed node", node.engine.shutdown()).await;
    }

    /// Waits at most `longest` until the power is lost at the chosen step, then cancels the loss.
    pub(crate) async fn power_lost_within(&self, node: &Node, longest: Duration) -> bool {
        let began = Instant::now();
        while began.elapsed() < longest {
            if node.boundary.power_is_lost() {
                return true;
            }
            sleep(Duration::from_millis(2)).await;
        }
        node.boundary.set_crash(None);
        node.boundary.power_is_lost()
    }

    pub(crate) async fn shut_down_one(&self, id: u64) {
        let Some(node) = self.seats()[id as usize].node.clone() else { return };
        let both = async { tokio::join!(node.engine.shutdown(), node.engine.shutdown()) };
        let result = self.completes("a shutdown", both).await;
        if let Some((Err(error), _) | (_, Err(error))) = &result
            && !node.may_be_fatal()
        {
            self.record().fail(format!("the shutdown of node {id}: {error}"));
        }
        if node.health() == Health::Running {
            self.record().fail(format!("node {id} is still running after its shutdown"));
        }
        node.boundary.close();
        node.transport.shutdown().await;
        let seat = &mut self.seats()[id as usize];
        seat.node = None;
        seat.log = node.boundary.log.close();
        seat.machine = node.boundary.dir.clone();
    }

    /// Files of the log of a node that is down.
    pub(crate) fn log_files(&self, id: u64) -> Files {
        self.seats()[id as usize].log.clone()
    }

    pub(crate) fn set_log_files(&self, id: u64, files: Files) {
        self.seats()[id as usize].log = files;
    }

    /// Copies the disks of a node that is down.
    pub(crate) fn copy_disks(&self, id: u64) -> Disks {
        let seat = &self.seats()[id as usize];
        // After a shutdown the newest files are durable.
        Disks { log: seat.log.clone(), machine: seat.machine.image(|_| 0) }
    }

    /// Replaces the disks of a node that is down by a copy.
    pub(crate) fn restore_disks(&self, id: u64, disks: Disks) {
        let seat = &mut self.seats()[id as usize];
        (seat.log, seat.machine) = (disks.log, disks.machine);
    }

    /// Empties the disks of a node that is down.
    pub(crate) fn wipe(&self, id: u64) {
        let seat = &mut self.seats()[id as usize];
        seat.wipes += 1;
        (seat.log, seat.machine) = (new_log(NodeId(id), Self::storage(id, seat.wipes)), SimDir::new());
    }

    /// Identity of the present storage of a node.
    pub(crate) fn storage_of(&self, id: u64) -> StorageId {
        StorageId(Self::storage(id, self.seats()[id as usize].wipes))
    }

    fn storage(id: u64, wipes: u64) -> u64 {
        1 + id + 100 * wipes
    }

    /// Cuts all links of a node, in both directions.
    pub(crate) fn cut_off(&self, id: u64) {
        let others: Vec<NodeId> = (0..self.plan.nodes).filter(|other| *other != id).map(NodeId).collect();
        self.network.partition(&[&[NodeId(id)], &others]);
    }

    pub(crate) fn endpoint(&self, id: u64) -> Endpoint {
        Plan::endpoint(id, self.seats()[id as usize].moves)
    }

    /// Gives a node that is down another address. Returns the number of its moves.
    pub(crate) fn move_node(&self, id: u64) -> u16 {
        let seat = &mut self.seats()[id as usize];
        seat.moves += 1;
        self.addresses.set(id, Plan::port(id, seat.moves));
        seat.moves
    }

    /// Whether the node was never started.
    pub(crate) fn is_new(&self, id: u64) -> bool {
        self.seats()[id as usize].lives == 0
    }

    /// Configuration of the newest leader.
    pub(crate) fn membership(&self) -> Option<Arc<Membership>> {
        Some(self.leader()?.status().membership.clone())
    }

    /// Checks that no node stopped without a reason.
    pub(crate) fn check_health(&self) -> Result<(), String> {
        if let Some(why) = &self.record().failure {
            return Err(why.clone());
        }
        for node in self.nodes().iter().filter(|node| !node.may_be_fatal()) {
            let status = node.status();
            if let Health::Fatal(why) = &status.health {
                return Err(format!("node {} stopped: {why}", node.id));
            }
            let running = status.health == Health::Running;
            if let Some(id) = node.transport.untold(&status.membership).filter(|_| running) {
                let members = &status.membership;
                return Err(format!(
                    "node {} does not pass the endpoint of node {id} to its transport: {members:?}",
                    node.id
                ));
            }
        }
        Ok(())
    }

    /// Waits until the status of each member tells of no problem, and of the state that the member has.
    pub(crate) async fn rests(&self) -> Result<(), String> {
        let began = Instant::now();
        while let Some(why) = self.members().iter().find_map(unrest) {
            self.check_health()?;
            if began.elapsed() > RESTS_BY {
                return Err(format!("long after the last fault, {why}"));
            }
            sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Restarts nodes that missed a move of others, like an operator who wrote the new addresses to the file. Returns `false` if
    /// there was such a node, or this is unknown.
    pub(crate) async fn restart_lost(&self) -> bool {
        let Some(membership) = self.membership() else { return false };
        let mut lost = self.nodes();
        lost.retain(|node| !node.transport.finds_all(&membership));
        for node in lost.iter().filter_map(|node| self.take(node.id)) {
            self.record().count("restarted after missing a move");
            self.shut_down_one(node.id).await;
            self.up_again(node.id).await;
            self.give_back(node.id);
        }
        lost.is_empty()
    }

    /// Members that are running.
    pub(crate) fn members(&self) -> Vec<Node> {
        let Some(membership) = self.membership() else { return Vec::new() };
        let mut nodes = self.nodes();
        nodes.retain(|node| membership.get(NodeId(node.id)).is_some());
        nodes
    }

    /// Applied position and state hash of each member.
    pub(crate) fn states(&self) -> Vec<(LogId, u64)> {
        let view = |node: &Node| *node.view.lock().unwrap();
        self.members().iter().map(view).map(|view| (view.applied, view.hash)).collect()
    }

    /// Shuts down all nodes at once; the last ones find no successor.
    pub(crate) async fn shut_down(&self) -> Result<(), String> {
        for id in 0..self.plan.nodes {
            self.shut_down_one(id).await;
        }
        self.record().failure.clone().map_or(Ok(()), Err)
    }
}

/// The first problem that the status of a node tells of, or the first part of it that is not true.
fn unrest(node: &Node) -> Option<String> {
    let (id, status) = (node.id, node.status());
    let problem =
        |what: &str, why: Option<String>| why.map(|why| format!("node {id} tells that {what}: {why}"));
    let since = |began: Option<std::time::Instant>| began.map(|began| format!("{:?}", began.elapsed()));
    let position = (status.first_index.prev(), status.applied, status.commit);
    let last = status.last_log.index;
    let is = (node.boundary.purged().index, last, last);
    problem("its disk has no room", status.no_room.clone())
        .or(problem("its disk is stalled", since(status.storage_stalled_since)))
        .or(problem("its state machine is stalled", since(status.apply_stalled_since)))
        .or(problem("it refuses a snapshot", status.snapshot_blocked.clone()))
        .or(problem("a snapshot failed", status.snapshot_errors.values().next().cloned()))
        .or_else(|| {
            let sends = status.peers.iter().find(|(_, peer)| peer.snapshot_bytes.is_some());
            sends.map(|(to, _)| format!("node {id} sends a snapshot to {to}"))
        })
        .or_else(|| {
            (position != is)
                .then(|| format!("node {id} tells of the log and state {position:?}, which are {is:?}"))
        })
}

/// Longer than a failed snapshot waits for its next try.
const RESTS_BY: Duration = Duration::from_secs(60);
/// Far longer than any call takes, in simulated time.
pub(crate) const FOREVER: Duration = Duration::from_secs(60);
