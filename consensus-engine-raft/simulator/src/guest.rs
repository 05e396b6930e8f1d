//! A state machine of yours in the simulated clusters.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use consensus_core::StateMachine;

use crate::random::Random;

/// A [`StateMachine`] of yours, as the simulation needs to know it. Run it with [`run_guest`](crate::run_guest).
///
/// On every node an instance of it stands beside the simulation's own machine and is given the very same committed entries,
/// in the same batches, so that all checks of the cluster stay in force. What a client proposes again is a second entry
/// with the same command, as it is for a real engine; only a machine with sessions of its own can tell.
///
/// # Life of an instance
/// A crash takes it. The node comes up with a new one, which is restored from the snapshot that was taken when the node
/// last flushed, if ever it did, and then applies the rest of the log again. A node that is too far behind is sent another
/// node's snapshot: then [`restore`](StateMachine::restore) is called on an instance that has a state already. The nodes
/// of a cluster live in one thread, and clusters run side by side: share nothing between instances.
///
/// # What is checked
/// * Each entry's response is the same on every node, after a restart or a restore too, and wherever batches are cut.
/// * Each entry has one response, empty where there is no command.
/// * [`applied`](StateMachine::applied) follows the entries and the snapshots; a new machine has applied nothing.
/// * [`flush`](StateMachine::flush) says no more than what is applied.
/// * No call returns an error or panics.
/// * What you ask for in [`check`](Self::check) and [`digest`](Self::digest).
pub trait Guest: Send + Sync + 'static {
    /// The machine under test.
    type Machine: StateMachine;

    /// An empty one, as a new node has it; one on disk in a directory of its own.
    fn open(&self) -> Self::Machine;

    /// Some command. It must depend on nothing but `random`, or a seed is not the same run again. Few different keys make
    /// commands meet.
    fn command(&self, random: &mut Random) -> Bytes;

    /// An invariant of your own: asked for after every batch and every restore.
    ///
    /// # Errors
    /// It does not hold; says what is wrong. A panic does as well.
    fn check(&self, _machine: &mut Self::Machine) -> Result<(), String> {
        Ok(())
    }

    /// What tells two states apart; the same for equal states, so no bytes in the order of a hash map. Compared between
    /// nodes at the same position: now and then, around snapshots, and at the end. `None`: only responses are compared,
    /// and what never shows in one is not looked at.
    fn digest(&self, _machine: &mut Self::Machine) -> Option<Vec<u8>> {
        None
    }
}

/// A guest of whatever type, as [`Options`](crate::Options) have it.
#[derive(Clone)]
pub struct AnyGuest(Arc<dyn Erased>);

impl AnyGuest {
    /// Of this one.
    pub fn new(guest: impl Guest) -> Self {
        Self(Arc::new(Arc::new(guest)))
    }

    pub(crate) fn open(&self) -> Box<dyn Instance> {
        self.0.open()
    }

    pub(crate) fn command(&self, random: &mut Random) -> Bytes {
        self.0.command(random)
    }
}

impl fmt::Debug for AnyGuest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AnyGuest")
    }
}

/// [`Guest`] without its type.
trait Erased: Send + Sync {
    fn open(&self) -> Box<dyn Instance>;
    fn command(&self, random: &mut Random) -> Bytes;
}

/// One of a guest's machines, with what the guest knows of it.
pub(crate) trait Instance: Send {
    fn machine(&mut self) -> &mut dyn StateMachine;
    fn check(&mut self) -> Result<(), String>;
    fn digest(&mut self) -> Option<Vec<u8>>;
}

struct Opened<G: Guest> {
    guest: Arc<G>,
    machine: G::Machine,
}

impl<G: Guest> Erased for Arc<G> {
    fn open(&self) -> Box<dyn Instance> {
        Box::new(Opened { guest: self.clone(), machine: G::open(self) })
    }

    fn command(&self, random: &mut Random) -> Bytes {
        G::command(self, random)
    }
}

impl<G: Guest> Instance for Opened<G> {
    fn machine(&mut self) -> &mut dyn StateMachine {
        &mut self.machine
    }

    fn check(&mut self) -> Result<(), String> {
        self.guest.check(&mut self.machine)
    }

    fn digest(&mut self) -> Option<Vec<u8>> {
        self.guest.digest(&mut self.machine)
    }
}
