//! The nodes, as they are started, stopped and lost.

use std::{
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use consensus_core::{
    ConsensusEngine, Entry, Health, LogBatch, LogId, LogIndex, LogState, LogStorage, NetworkTransport,
    NodeId, Role, StorageError, StorageId,
};
use consensus_engine_raft::{RaftEngine, StartError};
use consensus_raft_simulator::{MachineDisk, SimDisk, SimMachine};
use consensus_transport_mem::{MemNetwork, MemTransport};
use tokio::time::{Instant, timeout};

use super::{
    Plan, Record,
    record::{Panics, View, Watched},
};

pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) network: MemNetwork,
    pub(crate) over: AtomicBool,
    began: Instant,
    record: Arc<Mutex<Record>>,
    seats: Mutex<Vec<Seat>>,
}

/// Where a node is, or will be again.
#[derive(Default)]
struct Seat {
    disk: SimDisk,
    machine: MachineDisk,
    lives: u64,
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
    pub(crate) disk: Arc<Disk>,
    transport: Arc<MemTransport>,
}

/// A disk that remembers whether it let its node down.
pub(crate) struct Disk {
    pub(crate) sim: SimDisk,
    pub(crate) failed: AtomicBool,
}

impl LogStorage for Disk {
    fn load(&self) -> Result<LogState, StorageError> {
        self.sim.load()
    }

    fn write(&self, batch: LogBatch) -> Result<(), StorageError> {
        let result = self.sim.write(batch);
        if matches!(result, Err(StorageError::Failed(_))) {
            self.failed.store(true, Ordering::Relaxed);
        }
        result
    }

    fn read(&self, after: LogIndex, last: LogIndex, max_bytes: u64) -> Result<Vec<Entry>, StorageError> {
        self.sim.read(after, last, max_bytes)
    }
}

impl Node {
    pub(crate) fn leads(&self) -> bool {
        self.engine.status().borrow().role == Role::Leader
    }

    pub(crate) fn health(&self) -> Health {
        self.engine.status().borrow().health.clone()
    }

    /// It was given a reason to stop.
    fn may_be_fatal(&self) -> bool {
        self.panics.happened() || self.disk.failed.load(Ordering::Relaxed)
    }
}

impl World {
    pub(crate) async fn start(plan: Plan) -> Arc<Self> {
        let seat = |id| Seat { disk: SimDisk::new(StorageId(1 + id)), ..Seat::default() };
        let seats = Mutex::new((0..plan.nodes).map(seat).collect());
        let world = Arc::new(Self {
            network: MemNetwork::new(plan.seed),
            plan,
            over: AtomicBool::new(false),
            began: Instant::now(),
            record: Arc::default(),
            seats,
        });
        for id in 0..world.plan.nodes {
            world.up(id).await.expect("an empty disk");
        }
        world.network.set_all_links(&world.plan.link);
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
        let term = |node: &Node| node.engine.status().borrow().term;
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
        let (config, sim, machine_disk) = {
            let seat = &mut self.seats()[id as usize];
            seat.lives += 1;
            (self.plan.config(id, seat.lives), seat.disk.clone(), seat.machine.clone())
        };
        let transport = self.network.transport(NodeId(id));
        let machine = Watched::new(id, SimMachine::open(&machine_disk), self.record.clone());
        let (view, panics) = (machine.view.clone(), machine.panics.clone());
        let disk = Arc::new(Disk { sim, failed: AtomicBool::new(false) });
        let engine = RaftEngine::start(config, transport.clone(), disk.clone(), Box::new(machine)).await?;
        self.seats()[id as usize].node = Some(Node { id, engine, view, panics, disk, transport });
        Ok(())
    }

    /// Starts it; that it does not start is a failure.
    pub(crate) async fn up_again(&self, id: u64) {
        if let Err(error) = self.up(id).await {
            self.record().fail(format!("node {id} does not start again: {error}"));
        }
    }

    /// The power goes: memory is lost, and what is on its way; its disks stay as they are at this moment.
    pub(crate) async fn lose_power(&self, id: u64) {
        let node = {
            let seat = &mut self.seats()[id as usize];
            let Some(node) = seat.node.take() else { return };
            let image = seat.disk.image();
            // What goes on running there is no part of the cluster any more, and can make nothing durable.
            seat.disk.fail(true);
            image.fail(false);
            image.fill(false);
            (seat.disk, seat.machine) = (image, seat.machine.image());
            node
        };
        node.transport.shutdown().await;
        let _ = self.answered("the shutdown of a lost node", node.engine.shutdown()).await;
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
        self.seats()[id as usize].node = None;
    }

    pub(crate) fn disk_of(&self, id: u64) -> SimDisk {
        self.seats()[id as usize].disk.clone()
    }

    /// Nobody stopped who had no reason to.
    pub(crate) fn check_health(&self) -> Result<(), String> {
        if let Some(why) = &self.record().failure {
            return Err(why.clone());
        }
        for node in self.nodes().iter().filter(|node| !node.may_be_fatal()) {
            if let Health::Fatal(why) = node.health() {
                return Err(format!("node {} stopped: {why}", node.id));
            }
        }
        Ok(())
    }

    /// Of each node, what it applied, and the hash of it.
    pub(crate) fn states(&self) -> Vec<(LogId, u64)> {
        let view = |node: &Node| *node.view.lock().unwrap();
        self.nodes().iter().map(view).map(|view| (view.applied, view.hash)).collect()
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
