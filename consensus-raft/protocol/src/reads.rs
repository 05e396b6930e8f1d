//! ReadIndex (D §6.4): linearizable reads without log entries, batched.

use std::collections::VecDeque;

use consensus_core::LogIndex;

use crate::{Output, Raft, raft::Role, replication::Send};

/// Reads that wait on a leader.
///
/// 1. A read arrives and waits for the leader to have committed in its term ("new").
/// 2. The commit index is noted, and at the end of the turn one heartbeat round begins for all that came ("noted").
/// 3. A quorum answers that round or a later one: the leader still led when it noted the index (I9).
#[derive(Debug)]
pub(crate) struct Reads {
    /// The first entry of the leader's term; only when it is committed is the commit index up to date.
    term_start: LogIndex,
    committed: Option<LogIndex>,
    new: Vec<u64>,
    noted: VecDeque<Noted>,
}

#[derive(Debug)]
struct Noted {
    token: u64,
    index: LogIndex,
    round: u64,
}

impl Reads {
    pub(crate) fn new(term_start: LogIndex) -> Self {
        Self { term_start, committed: None, new: Vec::new(), noted: VecDeque::new() }
    }

    pub(crate) fn committed(&mut self, index: LogIndex) {
        if index >= self.term_start {
            self.committed = Some(index);
        }
    }

    pub(crate) fn into_refusals(self) -> impl Iterator<Item = Output> {
        self.noted.into_iter().map(|read| read.token).chain(self.new).map(Output::ReadRefused)
    }
}

impl Raft {
    pub(crate) fn on_read(&mut self, token: u64) {
        match &mut self.role {
            Role::Leader(leader) => leader.reads.new.push(token),
            _ => self.outputs.push(Output::ReadRefused(token)),
        }
    }

    /// At the end of a turn: one round for all reads that came in it.
    pub(crate) fn begin_read_round(&mut self) {
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(index) = leader.reads.committed.filter(|_| !leader.reads.new.is_empty()) else { return };
        leader.round += 1;
        let round = leader.round;
        let reads = &mut leader.reads;
        reads.noted.extend(reads.new.drain(..).map(|token| Noted { token, index, round }));
        self.broadcast(Send::Round);
        self.confirm_reads();
    }

    pub(crate) fn confirm_reads(&mut self) {
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(round) = leader.quorum_round(self.config.id, self.log.membership()) else { return };
        while let Some(read) = leader.reads.noted.front().filter(|read| read.round <= round) {
            self.outputs.push(Output::ReadReady(read.token, read.index));
            leader.reads.noted.pop_front();
        }
    }
}
