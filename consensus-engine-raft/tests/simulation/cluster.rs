//! The nodes, as they are started, stopped and lost.

use std::{
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use consensus_core::{
    ConsensusEngine, EngineStatus, Health, LogId, Membership, NetworkTransport, NodeId, Role, StorageError,
};
use consensus_engine_raft::{RaftEngine, StartError};
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
    /// One node at a time has a damaged log.
    pub(crate) damaging: tokio::sync::Mutex<()>,
    /// Members change by one procedure at a time.
    pub(crate) changing: tokio::sync::Mutex<()>,
}

/// Where a node is, or will be again.
struct Seat {
    /// While no node is up.
    log: Files,
    machine: SimDir,
    lives: u64,
    moves: u16,
    node: Option<Node>,
    /// A trouble has it in hand.
    busy: bool,
}

/// A node that is up.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) id: u64,
    pub(crate) engine: Arc<RaftEngine>,
    pub(crate) view: Arc<Mutex<View>>,
    pub(crate) panics: Arc<Panics>,
    pub(crate) boundary: Arc<Boundary>,
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

    /// It was given a reason to stop.
    fn may_be_fatal(&self) -> bool {
        self.panics.happened() || self.boundary.log.has_failed() || self.boundary.power_is_lost()
    }
}

impl World {
    pub(crate) async fn start(plan: Plan) -> Arc<Self> {
        let seat = |id| Seat {
            log: new_log(NodeId(id), 1 + id),
            machine: SimDir::new(),
            lives: 0,
            moves: 0,
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

    /// Nobody waits for ever.
    pub(crate) async fn answered<T>(&self, what: &str, answer: impl Future<Output = T>) -> Option<T> {
        let answer = timeout(FOREVER, answer).await.ok();
        if answer.is_none() {
            self.record().fail(format!("{what} is not answered after {FOREVER:?}"));
        }
        answer
    }

    pub(crate) fn nodes(&self) -> Vec<Node> {
        self.seats().iter().filter_map(|seat| seat.node.clone()).collect()
    }

    /// Who leads the newest term.
    pub(crate) fn leader(&self) -> Option<Node> {
        let term = |node: &Node| node.status().term;
        self.nodes().into_iter().filter(Node::leads).max_by_key(term)
    }

    /// Takes a node in hand, unless it is already, or down.
    pub(crate) fn take(&self, id: u64) -> Option<Node> {
        let mut seats = self.seats();
        let seat = seats.get_mut(id as usize).filter(|seat| !seat.busy)?;
        seat.busy = seat.node.is_some();
        seat.node.clone()
    }

    pub(crate) fn give_back(&self, id: u64) {
        self.seats()[id as usize].busy = false;
    }

    /// Starts a node on what lies on its disks.
    pub(crate) async fn up(&self, id: u64) -> Result<(), StartError> {
        self.up_until(id, None).await
    }

    /// Starts it; the power may be to go at a certain step.
    pub(crate) async fn up_until(&self, id: u64, crash: Option<Crash>) -> Result<(), StartError> {
        let (config, files, dir, life) = {
            let seat = &mut self.seats()[id as usize];
            seat.lives += 1;
            (self.plan.config(id, seat.lives), seat.log.clone(), seat.machine.clone(), seat.lives)
        };
        let random = Random::new(self.plan.seed, 1000 * (1 + id) + life);
        let log = LogDisk::open(NodeId(id), &files, random)?;
        let boundary = Boundary::new(id, log, dir, self.record.clone(), crash);
        let machine =
            Watched::open(boundary.clone()).map_err(|error| StorageError::Failed(error.to_string()))?;
        let (view, panics) = (machine.view.clone(), machine.panics.clone());
        let (network, addresses) = (self.network.transport(NodeId(id)), self.addresses.clone());
        let transport = Arc::new(Addressed::new(network, addresses, self.plan.nodes));
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
        self.seats()[id as usize].node = Some(Node { id, engine, view, panics, boundary, transport });
        Ok(())
    }

    /// Starts it; that it does not start is a failure.
    pub(crate) async fn up_again(&self, id: u64) {
        if let Err(error) = self.up(id).await {
            self.record().fail(format!("node {id} does not start again: {error}"));
        }
    }

    /// What a crash leaves becomes what lies on the disks.
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

    /// The power goes: memory is lost, and what is on its way; its disks stay as they are at this moment.
    pub(crate) async fn lose_power(&self, id: u64) {
        let Some(node) = self.seats()[id as usize].node.take() else { return };
        // What goes on running there is no part of the cluster any more, and can make nothing durable.
        self.power_lost_at(id, &node.boundary);
        node.transport.shutdown().await;
        let _ = self.answered("the shutdown of a lost node", node.engine.shutdown()).await;
    }

    /// The process ends without a word: what it wrote to its log is there, the mark too.
    pub(crate) async fn kill(&self, id: u64) {
        let Some(node) = self.seats()[id as usize].node.take() else { return };
        let log = node.boundary.log.close();
        self.stopped_at(id, &node.boundary, log);
        node.transport.shutdown().await;
        let _ = self.answered("the shutdown of a killed node", node.engine.shutdown()).await;
    }

    /// Waits until the power has gone where it was to; or for so long, and it is not to go any more.
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
        let result = self.answered("a shutdown", both).await;
        if let Some((Err(error), _) | (_, Err(error))) = &result
            && !node.may_be_fatal()
        {
            self.record().fail(format!("the shutdown of node {id}: {error}"));
        }
        if node.health() == Health::Running {
            self.record().fail(format!("node {id} runs on after its shutdown"));
        }
        node.transport.shutdown().await;
        let seat = &mut self.seats()[id as usize];
        seat.node = None;
        seat.log = node.boundary.log.close();
        seat.machine = node.boundary.dir.clone();
    }

    /// What lies on the log's disk of a node that is down.
    pub(crate) fn log_files(&self, id: u64) -> Files {
        self.seats()[id as usize].log.clone()
    }

    pub(crate) fn set_log_files(&self, id: u64, files: Files) {
        self.seats()[id as usize].log = files;
    }

    /// Gives a node that is down another address; returns how often it has moved.
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

    /// The configuration, as the newest leader has it.
    pub(crate) fn membership(&self) -> Option<Arc<Membership>> {
        Some(self.leader()?.status().membership.clone())
    }

    /// Nobody stopped who had no reason to.
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
                    "node {} does not tell its transport where node {id} is: {members:?}",
                    node.id
                ));
            }
        }
        Ok(())
    }

    /// Starts those again that missed where others moved, as an operator would with the new addresses in the file. `false` if
    /// there was one, or it is not known.
    pub(crate) async fn restart_lost(&self) -> bool {
        let Some(membership) = self.membership() else { return false };
        let mut lost = self.nodes();
        lost.retain(|node| !node.transport.finds_all(&membership));
        for node in lost.iter().filter_map(|node| self.take(node.id)) {
            self.record().count("restarted, as it missed where others moved");
            self.shut_down_one(node.id).await;
            self.up_again(node.id).await;
            self.give_back(node.id);
        }
        lost.is_empty()
    }

    /// The members that are up.
    pub(crate) fn members(&self) -> Vec<Node> {
        let Some(membership) = self.membership() else { return Vec::new() };
        let mut nodes = self.nodes();
        nodes.retain(|node| membership.get(NodeId(node.id)).is_some());
        nodes
    }

    /// Of each member, what it applied, and the hash of it.
    pub(crate) fn states(&self) -> Vec<(LogId, u64)> {
        let view = |node: &Node| *node.view.lock().unwrap();
        self.members().iter().map(view).map(|view| (view.applied, view.hash)).collect()
    }

    /// All at once; the last ones find nobody to hand over to.
    pub(crate) async fn shut_down(&self) -> Result<(), String> {
        for id in 0..self.plan.nodes {
            self.shut_down_one(id).await;
        }
        self.record().failure.clone().map_or(Ok(()), Err)
    }
}

/// Far more than anything takes, in simulated time.
pub(crate) const FOREVER: Duration = Duration::from_secs(60);
