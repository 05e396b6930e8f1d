//! Your state machine in the simulated clusters.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use consensus_core::StateMachine;

use crate::random::Random;

/// Describes your [`StateMachine`] to the simulation. Run it with [`run_guest`](crate::run_guest).
///
/// On every node an instance runs beside the simulation's own state machine and applies the same committed entries in the
/// same batches, so that all checks of the cluster still apply. A command that a client repeats is a second entry with the
/// same command, as with a real engine; only a state machine with its own sessions can detect the repetition.
///
/// # Lifetime of an instance
/// A crash drops the instance. The node restarts with a new one, which is restored from the snapshot of the node's last flush,
/// if there was one, and then applies the rest of the log again. A node that is too far behind is sent another
/// node's snapshot: then [`restore`](StateMachine::restore) is called on an instance that has a state already. The nodes
/// of a cluster run in one thread, and clusters run in parallel: instances must not share anything.
///
/// # What is checked
/// * Each entry's response is the same on every node, after a restart or restore, and in any division into batches.
/// * Each entry has one response, which is empty if the entry has no command.
/// * [`applied`](StateMachine::applied) follows the entries and the snapshots; a new machine has applied nothing.
/// * [`flush`](StateMachine::flush) returns a position that is not after the applied one.
/// * No call returns an error or panics.
/// * Your own checks in [`check`](Self::check) and [`digest`](Self::digest).
pub trait Guest: Send + Sync + 'static {
    /// The machine under test.
    type Machine: StateMachine;

    /// Creates an empty machine, as on a new node. A machine on disk needs its own directory.
    fn open(&self) -> Self::Machine;

    /// Returns a random command. It must depend only on `random`, or a seed would not repeat its run. Use few different keys, so
    /// that commands interact.
    fn command(&self, random: &mut Random) -> Bytes;

    /// Checks an invariant of the machine, after every batch and every restore.
    ///
    /// # Errors
    /// The invariant does not hold, for this reason. A panic has the same effect.
    fn check(&self, _machine: &mut Self::Machine) -> Result<(), String> {
        Ok(())
    }

    /// Returns bytes that are equal for equal states and differ for different ones; they must not depend on the order of a hash map.
    /// Compared between nodes at the same position: occasionally, around snapshots, and at the end. With `None` only responses are
    /// compared, so differences that never show in a response are not found.
    fn digest(&self, _machine: &mut Self::Machine) -> Option<Vec<u8>> {
        None
    }
}

/// A guest of any type, for [`Options`](crate::Options).
#[derive(Clone)]
pub struct AnyGuest(Arc<dyn Erased>);

impl AnyGuest {
    /// Wraps a guest.
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

/// A state machine of a guest, with the guest's checks.
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
