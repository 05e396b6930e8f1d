//! What you bring.

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
/// Two machines given the same entries must end in the same state and give the same responses: no clock, no random
/// source, no address, no hash-map order. Whatever varies belongs into the command.
///
/// # Durability
/// A machine need not be durable in `apply`: after a crash the engine applies again what lies after
/// [`applied`](Self::applied). What it must do:
/// * `applied` is a position that the state *exactly* reflects. A machine on disk writes the position in the same atomic
///   write as the data; a machine in memory starts at [`LogId::ZERO`].
/// * [`flush`](Self::flush), or [`flush_aside`](Self::flush_aside), makes state durable, and tells up to where. The engine
///   forgets log entries only up to there. A machine in memory says [`LogId::ZERO`], and its log is kept whole.
/// * [`restore`](Self::restore) is all or nothing and durable: after a crash at any byte of it the machine opens with
///   the state from before or the one restored, `applied` telling which.
///
/// # Errors and panics
/// An error of [`apply`](Self::apply) stops the engine of this node (never the process), with the reason in its status, and so
/// does [`StateMachineError::Broken`] or a panic wherever it comes from. After any other error of `flush`, `flush_aside`,
/// `snapshot` or `restore` the state is the one from before, and the engine calls again a little later. An invalid *command* is
/// no error: answer it in the response, the same on every node.
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
/// Wrong: setting `applied` only for commands (the position would not be the one a snapshot claims); answering a bad
/// command with `Err` (every node would stop at it, again after each restart).
pub trait StateMachine: Send + 'static {
    /// Identity of the last entry that the state reflects, [`LogId::ZERO`] if none. Called once, at start.
    fn applied(&self) -> LogId;

    /// Applies committed entries, contiguous and in log order, the first at the index after [`applied`](Self::applied),
    /// and returns one response per entry applied (empty for entries without a command). Batches are cut anywhere: the outcome
    /// must not depend on where.
    ///
    /// It may stop before the last entry, but not before the first, where the responses would take too much memory: as many
    /// were applied as there are responses, and the caller goes on with the rest.
    ///
    /// # Errors
    /// Only for what stops the node: a disk that fails, a command that this version cannot read.
    fn apply(&mut self, entries: &[Entry]) -> Result<Vec<Bytes>, StateMachineError>;

    /// Makes what was applied durable and returns the position up to which the machine can answer for itself after a
    /// crash; the log up to there may go. The engine calls it before it compacts the log.
    ///
    /// # Errors
    /// The disk fails. The engine keeps its log and tries again later: a machine that does not know what a failed flush left on
    /// the disk returns [`StateMachineError::Broken`].
    fn flush(&mut self) -> Result<LogId, StateMachineError>;

    /// [`flush`](Self::flush) as work to be done beside later `apply`s, on a thread that may block: when it has been done, what
    /// was applied when this was called is durable, and it returns up to where. There may have been a
    /// [`restore`](Self::restore) meanwhile, which it must not undo. The engine calls it before it compacts the log, and before
    /// [`snapshot`](Self::snapshot), which then has little left to write. `None`, the default: there is no such way, and for a
    /// compaction the engine calls `flush`, which holds up `apply`.
    fn flush_aside(&mut self) -> Option<FlushWork> {
        None
    }

    /// A picture of the state as it stands. Must be cheap, as it holds up `apply`; the work is in
    /// [`Snapshot::write_to`], which runs beside later `apply`s and must not see them.
    ///
    /// # Errors
    /// It cannot be taken now. The engine tries again later.
    fn snapshot(&mut self) -> Result<Box<dyn Snapshot>, StateMachineError>;

    /// Replaces the state by what a [`Snapshot`] wrote, all or nothing, durably, [`applied`](Self::applied) included.
    /// The engine has checked the stream against its checksum; a machine still bounds what it allocates.
    ///
    /// # Errors
    /// The stream is not a snapshot of this machine, there is no room for it, or the disk fails; the state is the one from
    /// before, in memory and on disk, and the engine asks for another snapshot later. [`StateMachineError::Broken`] if it may not
    /// be.
    fn restore(&mut self, stream: &mut dyn Read) -> Result<(), StateMachineError>;
}

/// Applies all `entries`, in as many calls of [`StateMachine::apply`] as the machine needs; one response per entry.
///
/// # Errors
/// Those of the machine, or it applied no entry at all.
pub fn apply_all<M: StateMachine + ?Sized>(
    machine: &mut M,
    entries: &[Entry],
) -> Result<Vec<Bytes>, StateMachineError> {
    let mut responses = Vec::with_capacity(entries.len());
    while responses.len() < entries.len() {
        let more = machine.apply(&entries[responses.len()..])?;
        if more.is_empty() {
            let why = "the machine applied no entry: it has to return a response for each entry that it applies, which is empty where there is no command";
            return Err(StateMachineError::Other(why.to_owned()));
        }
        responses.extend(more);
    }
    Ok(responses)
}

/// What [`StateMachine::flush_aside`] leaves to be done.
pub type FlushWork = Box<dyn FnOnce() -> Result<LogId, StateMachineError> + Send>;

/// A picture of a state machine's state at one position. Dropped when it is no longer needed, written or not.
pub trait Snapshot: Send {
    /// Streams it out, on a thread that may block. Called at most once.
    ///
    /// # Errors
    /// Those of `out` are passed on; of one's own, whatever keeps the picture from being read.
    fn write_to(&mut self, out: &mut dyn Write) -> std::io::Result<()>;
}

/// A picture that is already a run of bytes.
impl Snapshot for Vec<u8> {
    fn write_to(&mut self, out: &mut dyn Write) -> std::io::Result<()> {
        out.write_all(self)
    }
}

/// Why a state machine did not do as asked. [`StateMachine`] says which errors stop the engine of the node.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateMachineError {
    /// The disk, or the stream of a snapshot.
    #[error("state machine: {0}")]
    Io(#[from] std::io::Error),
    /// A committed command or a snapshot that this version cannot read.
    #[error("state machine: cannot read {what}: {why}")]
    Unreadable {
        /// What was being read.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// There is too little room on the disk; nothing was changed.
    #[error("state machine: {0}")]
    NoRoom(String),
    /// The machine panicked, or does not know what state it is in. Stops the engine wherever it comes from.
    #[error("state machine: {0}")]
    Broken(String),
    /// Something else, in the machine's own words.
    #[error("state machine: {0}")]
    Other(String),
}
