//! The state machine: the part of a replicated service that its author writes.

use std::io::{Read, Write};

use bytes::Bytes;

use crate::{Entry, LogId};

/// A deterministic machine that turns the committed log into state and responses.
///
/// # Who calls, and when
/// The engine owns the machine and calls it from a thread that may be blocked, one call at a time, so methods take
/// `&mut self`, may block and need no locks. Reads do not go through this trait: keep a handle to your state, await
/// [`ConsensusEngine::read_barrier`](crate::ConsensusEngine::read_barrier), then read.
///
/// # Determinism
/// Two machines that apply the same entries must reach the same state and return the same responses. A machine uses no
/// clock, no random source, no address and no hash-map order; every value that varies belongs in the command.
///
/// # Durability
/// `apply` need not make anything durable: after a crash the engine applies the entries after
/// [`applied`](Self::applied) again. A machine must keep three rules:
/// * `applied` is a position that the state *exactly* reflects. A machine on disk writes the position in the same atomic
///   write as the data; a machine in memory starts at [`LogId::ZERO`].
/// * [`flush`](Self::flush) and [`flush_in_background`](Self::flush_in_background) make the state durable and return the
///   position that is durable. The engine purges log entries only up to there. A machine in memory returns
///   [`LogId::ZERO`], and its log is never purged.
/// * [`restore`](Self::restore) is atomic and durable: after a crash at any moment the machine opens either with the state
///   from before or with the restored one, and `applied` says which.
///
/// # Errors and panics
/// An error of [`apply`](Self::apply) stops the engine of this node (never the process), with the reason in its status. So
/// does a panic, or [`StateMachineError::Broken`], of any method. After any other error of `flush`, `flush_in_background`,
/// `snapshot` or `restore` the state is unchanged, and the engine calls the method again later. An invalid *command* is no
/// error: report it in the response, the same on every node.
///
/// # Example
/// ```
/// use bytes::Bytes;
/// use consensus_core::{Entry, LogId, Payload, Snapshot, StateMachine, StateMachineError};
///
/// /// Counts the bytes of all commands.
/// #[derive(Default)]
/// struct ByteCount { applied: LogId, bytes: u64 }
///
/// impl StateMachine for ByteCount {
///     fn applied(&self) -> LogId { self.applied }
///
///     fn apply(&mut self, entries: &[Entry]) -> Result<Vec<Bytes>, StateMachineError> {
///         Ok(entries.iter().map(|entry| {
///             self.applied = entry.id; // for every entry, also those without a command
///             let Payload::Command(command) = &entry.payload else { return Bytes::new() };
///             self.bytes += command.len() as u64;
///             Bytes::copy_from_slice(&self.bytes.to_be_bytes())
///         }).collect())
///     }
///
///     fn flush(&mut self) -> Result<LogId, StateMachineError> { Ok(LogId::ZERO) }
///
///     fn snapshot(&mut self) -> Result<Box<dyn Snapshot>, StateMachineError> {
///         let mut bytes = self.applied.term.0.to_be_bytes().to_vec();
///         bytes.extend(self.applied.index.0.to_be_bytes());
///         bytes.extend(self.bytes.to_be_bytes());
///         Ok(Box::new(bytes))
///     }
///
///     fn restore(&mut self, stream: &mut dyn std::io::Read) -> Result<(), StateMachineError> {
///         let mut bytes = [0; 24];
///         stream.read_exact(&mut bytes)?; // nothing is changed before all of it is here
///         let number = |i: usize| u64::from_be_bytes(bytes[8 * i..8 * i + 8].try_into().unwrap());
///         self.applied = LogId::new(number(0), number(1));
///         self.bytes = number(2);
///         Ok(())
///     }
/// }
/// ```
/// Wrong: setting `applied` only for commands (the position would differ from the one that a snapshot claims); returning
/// `Err` for a bad command (every node would stop at it, and again after each restart).
pub trait StateMachine: Send + 'static {
    /// Log id of the last entry that the state reflects, [`LogId::ZERO`] if none. Called once, at start.
    fn applied(&self) -> LogId;

    /// Applies committed entries, contiguous and in log order, the first at the index after [`applied`](Self::applied),
    /// and returns one response per applied entry (empty for entries without a command). The result must not depend on how
    /// the entries are split into calls.
    ///
    /// A call may stop early, after at least one entry, if the responses would take too much memory. The number of
    /// responses says how many entries were applied; the caller passes the remaining ones again.
    ///
    /// # Errors
    /// Only failures that must stop the node: a disk that fails, a command that this version cannot decode.
    fn apply(&mut self, entries: &[Entry]) -> Result<Vec<Bytes>, StateMachineError>;

    /// Makes the applied entries durable and returns the position up to which the state survives a crash. The log up to
    /// there may be purged. The engine calls this before it compacts the log.
    ///
    /// # Errors
    /// The disk fails. The engine keeps its log and tries again later. A machine that does not know what a failed flush left
    /// on the disk returns [`StateMachineError::Broken`].
    fn flush(&mut self) -> Result<LogId, StateMachineError>;

    /// Returns work that does what [`flush`](Self::flush) does, on a thread that may block, while `apply` goes on. When the
    /// work has run, the entries applied before this call are durable; it returns the durable position. A
    /// [`restore`](Self::restore) may happen in the meantime, which the work must not undo. The engine calls this before it
    /// compacts the log, and before [`snapshot`](Self::snapshot), which then has little left to write. With `None`, the
    /// default, the engine calls `flush` to compact the log, and no entry is applied while it runs.
    fn flush_in_background(&mut self) -> Option<FlushWork> {
        None
    }

    /// Takes a snapshot of the current state. Must be cheap, because no entry is applied in the meantime. The expensive part
    /// is [`Snapshot::write_to`], which runs while `apply` goes on and must not include later entries.
    ///
    /// # Errors
    /// No snapshot can be taken now. The engine tries again later.
    fn snapshot(&mut self) -> Result<Box<dyn Snapshot>, StateMachineError>;

    /// Replaces the state, including [`applied`](Self::applied), by the one that a [`Snapshot`] wrote; atomic and durable.
    /// The engine has verified the checksum of the stream; a machine still bounds what it allocates.
    ///
    /// # Errors
    /// The stream is not a snapshot of this machine, there is no room for it, or the disk fails. The state is then unchanged,
    /// in memory and on disk, and the engine requests another snapshot later. A machine that cannot be sure that its state
    /// is unchanged returns [`StateMachineError::Broken`].
    fn restore(&mut self, stream: &mut dyn Read) -> Result<(), StateMachineError>;
}

/// Applies all `entries`, in as many calls of [`StateMachine::apply`] as the machine needs. Returns one response per entry.
///
/// # Errors
/// Those of the machine. [`StateMachineError::Other`] if a call applied no entry.
pub fn apply_all<M: StateMachine + ?Sized>(
    machine: &mut M,
    entries: &[Entry],
) -> Result<Vec<Bytes>, StateMachineError> {
    let mut responses = Vec::with_capacity(entries.len());
    while responses.len() < entries.len() {
        let more = machine.apply(&entries[responses.len()..])?;
        if more.is_empty() {
            let why = "`apply` returned no responses: it must apply at least one entry, and return one response per applied entry (empty for entries without a command)";
            return Err(StateMachineError::Other(why.to_owned()));
        }
        responses.extend(more);
    }
    Ok(responses)
}

/// A flush to run in the background, see [`StateMachine::flush_in_background`]. Returns the position that is durable.
pub type FlushWork = Box<dyn FnOnce() -> Result<LogId, StateMachineError> + Send>;

/// The state of a state machine at one position of the log. Dropped when it is no longer needed, written or not.
pub trait Snapshot: Send {
    /// Writes the snapshot to `out`, on a thread that may block. Called at most once.
    ///
    /// # Errors
    /// Errors of `out`, passed on, and those of reading the snapshot.
    fn write_to(&mut self, out: &mut dyn Write) -> std::io::Result<()>;
}

/// A snapshot that was serialized when it was taken.
impl Snapshot for Vec<u8> {
    fn write_to(&mut self, out: &mut dyn Write) -> std::io::Result<()> {
        out.write_all(self)
    }
}

/// Why an operation of a state machine failed. [`StateMachine`] says which errors stop the engine of the node.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateMachineError {
    /// The disk, or the stream of a snapshot, failed.
    #[error("state machine: {0}")]
    Io(#[from] std::io::Error),
    /// This version cannot decode a committed command or a snapshot.
    #[error("state machine: cannot read {what}: {why}")]
    Unreadable {
        /// Kind of data that was read, such as "command".
        what: &'static str,
        /// Description of the damage.
        why: String,
    },
    /// There is too little room on the disk; nothing was changed.
    #[error("state machine: {0}")]
    NoRoom(String),
    /// The machine panicked, or does not know its own state. Stops the engine, whichever method returned it.
    #[error("state machine: {0}")]
    Broken(String),
    /// Any other failure, described by the machine.
    #[error("state machine: {0}")]
    Other(String),
}
