//! Carries out the outputs of a node: sends, applies, results.

use bytes::Bytes;
use consensus_core::{
    Entry, LogId, LogIndex, MemberKind, Membership, NodeId, Payload, Role, SnapshotMeta, StateMachine,
};
use consensus_raft_protocol::{ArrivalOutcome, ControlMessage, Event, Output};

use crate::{
    clients::Answer,
    machine::answer_of,
    node::{ClientRequest, Up},
    stall::Stalling,
    world::{Before, Due, MS, Packet, World},
};

impl World {
    pub(crate) fn carry_out(&mut self, id: NodeId, output: Output) {
        match output {
            Output::Send(to, reply) => {
                if let ControlMessage::TimeoutNow(_) = reply {
                    self.check_transfer(id, to);
                }
                self.send(id, to, Packet::ControlMessage(reply));
            }
            Output::SendAppend(to, append) => {
                let Some(up) = &self.node(id).up else { return };
                let mut entries = up.entries(append.prev.index, append.last);
                let kind = up.raft.membership().get(to).map(|member| member.kind);
                if kind == Some(MemberKind::Witness) {
                    entries.iter_mut().for_each(withhold);
                }
                self.send(id, to, Packet::Append(append, entries));
            }
            Output::SendSnapshot(to) => self.send_snapshot(id, to),
            Output::Apply(through) => {
                self.check_apply(id, through);
                if let Some(up) = &mut self.node_mut(id).up {
                    up.target = up.target.max(through);
                }
                self.start_apply(id);
            }
            Output::Replaced(after) => self.replaced(id, after),
            Output::AppendedBlank(at) => self.append(id, at, Payload::Blank),
            Output::AppendedMembership(at, membership) => {
                self.reach_membership(&membership);
                self.record_added(id, at, &membership);
                self.append(id, at, Payload::Membership(Membership::clone(&membership)));
            }
            Output::ReadReady(token, index) => self.read_ready(id, token, index),
            Output::ReadRefused(token) => {
                let asked = self.node_mut(id).up.as_mut().and_then(|up| up.reads.remove(&token));
                if let Some((asked, _)) = asked {
                    self.checks.reach("read refused");
                    self.answer(asked, Answer::NotApplied);
                }
            }
            Output::Install(_) => {
                let (delay, incarnation) = (self.random.below(600) * MS, self.node(id).incarnation);
                self.schedule(delay, Due::Installed(id, incarnation));
            }
            Output::SnapshotSettled(outcome) => self.settle(id, outcome),
            Output::Changed(..) => self.checks.reach("change done"),
            Output::TransferEnded(_, Ok(())) => self.checks.reach("transfer"),
            Output::ChangeRefused(..) | Output::TransferEnded(..) => {}
            Output::Contradicted(contradiction) => self.end_node(id, contradiction.to_string()),
            Output::TwoLeaders(leaders) => self.end_node(id, leaders.to_string()),
        }
    }

    fn append(&mut self, id: NodeId, at: LogId, payload: Payload) {
        self.checks.entry(at, self.nodes[id.0 as usize].raft(), &payload);
        if let Some(up) = &mut self.node_mut(id).up {
            up.push(Entry { id: at, payload });
        }
    }

    fn replaced(&mut self, id: NodeId, after: LogIndex) {
        let entries = std::mem::take(&mut self.incoming);
        let Some(up) = &mut self.node_mut(id).up else { return };
        if up.raft.role() == Role::Leader {
            panic!("I3: leader {id} replaces entries of its own log");
        }
        let conflict = up.log.back().is_some_and(|last| last.id.index > after);
        up.truncate_after(after);
        let mut new: Vec<Entry> = entries.into_iter().filter(|entry| entry.id.index > after).collect();
        new.iter().for_each(|entry| up.push(entry.clone()));
        for entry in new.drain(..) {
            self.checks.entry(entry.id, self.nodes[id.0 as usize].raft(), &entry.payload);
        }
        if conflict {
            self.checks.reach("conflict");
        }
    }

    fn reach_membership(&mut self, membership: &Membership) {
        if membership.is_joint() {
            self.checks.reach("joint");
            let new = |(id, member): (&NodeId, &consensus_core::Member)| {
                member.kind == MemberKind::Voter && membership.outgoing().get(id).is_none()
            };
            if membership.members().iter().any(new) {
                self.checks.reach("voter added");
            }
        }
    }

    pub(crate) fn start_apply(&mut self, id: NodeId) {
        let slow = self.random.below(self.plan.apply_max_ms * MS);
        let now = self.now;
        let node = self.node_mut(id);
        let hangs = node.apply_stalls_until > now;
        let incarnation = node.incarnation;
        let Some(up) = &mut node.up else { return };
        // Entries that waited before a snapshot arrived are part of the snapshot.
        if up.applying.is_some() || up.target <= up.applied || up.raft.hard_state().installing.is_some() {
            return;
        }
        up.applying = Some(up.target);
        if slow == 0 && !hangs {
            self.finish_apply(id);
        } else {
            self.schedule(slow, Due::Applied(id, incarnation));
        }
    }

    pub(crate) fn finish_apply(&mut self, id: NodeId) {
        let witness = self.is_witness(id);
        self.end_stall(id, Stalling::Apply);
        let Some(up) = &mut self.node_mut(id).up else { return };
        let Some(last) = up.applying.take() else { return };
        let entries = up.entries(up.machine.applied().index, last);
        let responses = up.machine.apply(&entries).expect("a machine in memory");
        up.applied = up.applied.max(up.machine.applied().index);
        let effects = std::mem::take(&mut up.machine.effects);
        let mut due: Vec<(LogId, ClientRequest)> = up.due(last);
        due.sort_unstable_by_key(|(at, _)| *at);
        for effect in effects.into_iter().filter(|_| !witness) {
            self.checks.effect(id, &effect);
        }
        for (at, asked) in due {
            let place = entries.iter().position(|entry| entry.id == at);
            let answer = match place {
                Some(place) => {
                    self.checks.acknowledged = self.checks.acknowledged.max(at.index);
                    Answer::Done(answer_of(&responses[place]))
                }
                // Another entry at this index means that the command is not applied. If the index is in a snapshot, the outcome is unknown.
                None if entries.iter().any(|entry| entry.id.index == at.index) => Answer::NotApplied,
                None => Answer::Unknown,
            };
            self.answer(asked, answer);
        }
        self.serve_reads(id);
        self.compact_if_long(id);
        self.start_apply(id);
    }

    fn read_ready(&mut self, id: NodeId, token: u64, index: LogIndex) {
        let holds = self.checks.holds();
        let Some(up) = &mut self.node_mut(id).up else { return };
        let Some((asked, lease)) = up.reads.remove(&token) else { return };
        let role = up.raft.role();
        assert!(
            index >= asked.acknowledged || !holds,
            "I9: a read at {index} by {id} ({role}) misses commands acknowledged at {}",
            asked.acknowledged
        );
        up.ready.push((index, asked));
        match (role, lease) {
            (Role::Leader, true) => self.checks.reach("lease read"),
            (Role::Leader, false) => self.checks.reach("read"),
            _ => self.checks.reach("read on a follower"),
        }
        self.serve_reads(id);
    }

    fn serve_reads(&mut self, id: NodeId) {
        let Some(up) = &mut self.node_mut(id).up else { return };
        let applied = up.machine.applied().index;
        let ready: Vec<ClientRequest> =
            up.ready.extract_if(.., |(index, _)| *index <= applied).map(|(_, asked)| asked).collect();
        let values: Vec<u64> = ready.iter().map(|asked| up.machine.value(asked.key)).collect();
        for (asked, value) in ready.into_iter().zip(values) {
            self.answer(asked, Answer::Done(Some(value)));
        }
    }

    /// A former leader does not know the outcome of its proposals, and waits for it for a while.
    pub(crate) fn orphan_waiters(&mut self, id: NodeId, before: &Before) {
        let now = self.now;
        let Some(up) = &mut self.node_mut(id).up else { return };
        let ended =
            before.role == Role::Leader && (up.raft.role() != Role::Leader || up.raft.term() != before.term);
        let mut answers = Vec::new();
        if ended {
            up.transfers.clear();
            let waiters = std::mem::take(&mut up.waiters);
            up.orphans.extend(waiters.into_values().map(|(at, asked)| (at, asked, now + 1000 * MS)));
        }
        let over = up.orphans.extract_if(.., |(.., until)| *until <= now);
        answers.extend(over.map(|(_, asked, _)| (asked, Answer::Unknown)));
        for (asked, answer) in answers {
            self.answer(asked, answer);
        }
    }

    fn send_snapshot(&mut self, id: NodeId, to: NodeId) {
        self.tokens += 1;
        let transfer = self.tokens;
        let is_unable = self.node(id).no_snapshot_until > self.now;
        let Some(up) = &mut self.node_mut(id).up else { return };
        if up.transfers.contains_key(&to) {
            return;
        }
        up.transfers.insert(to, transfer);
        if is_unable {
            self.checks.reach("snapshot could not be taken");
            // The driver pauses before it retries.
            return self.schedule(500 * MS, Due::TransferOver { from: id, to, transfer });
        }
        let Some(up) = &mut self.node_mut(id).up else { return };
        let (term, last) = (up.raft.term(), up.machine.applied());
        let membership = (*up.raft.membership_at(last.index)).clone();
        let mut bytes = Vec::new();
        let mut snapshot = up.machine.snapshot().expect("a machine in memory");
        snapshot.write_to(&mut bytes).expect("a snapshot in memory");
        self.checks.snapshot(last, &membership);
        let meta = SnapshotMeta { last, membership };
        self.send(id, to, Packet::Snapshot(term, meta, Bytes::from(bytes), transfer));
        // Time limit of the transfer.
        self.schedule(3000 * MS, Due::TransferOver { from: id, to, transfer });
    }

    /// Handles the end of a snapshot transfer, successful or not.
    pub(crate) fn transfer_over(&mut self, from: NodeId, to: NodeId, transfer: u64, last: Option<LogIndex>) {
        let Some(up) = &mut self.node_mut(from).up else { return };
        if up.transfers.get(&to) == Some(&transfer) {
            up.transfers.remove(&to);
            self.step(from, Event::SnapshotSent(to, last));
        }
    }

    pub(crate) fn installed(&mut self, id: NodeId) {
        let incarnation = self.node(id).incarnation;
        let Some(up) = &mut self.node_mut(id).up else { return };
        if up.applying.is_some() {
            return self.schedule(MS, Due::Installed(id, incarnation)); // Waits for the apply before it.
        }
        let Some(arrival) = &up.arrival else { return };
        let (last, bytes) = (arrival.last, arrival.bytes.clone());
        // After its log was truncated the machine may be ahead of the snapshot; its state must not go back (I16).
        let machine = up.machine.applied().index;
        if last.index > machine {
            assert!(last.index >= machine, "S3: applied goes back from {machine} to {last}");
            up.machine.restore(&mut &bytes[..]).expect("a complete snapshot");
        } else {
            self.checks.reach("machine ahead of a snapshot");
        }
        let Some(up) = &mut self.node_mut(id).up else { return };
        up.applied = up.machine.applied().index;
        up.target = up.target.max(last.index);
        let conflict = !up.log.is_empty() && up.raft.last_log().index >= last.index;
        up.log.clear();
        self.checks.reach("snapshot installed");
        if conflict {
            self.checks.reach("install over a conflict");
        }
        self.step(id, Event::SnapshotInstalled);
        self.serve_reads(id);
    }

    fn settle(&mut self, id: NodeId, outcome: ArrivalOutcome) {
        let Some(arrival) = self.node_mut(id).up.as_mut().and_then(|up| up.arrival.take()) else { return };
        let held = (outcome == ArrivalOutcome::Accepted).then_some(arrival.last.index);
        self.send(id, arrival.from, Packet::SnapshotAck(held, arrival.transfer));
    }

    /// Compacts long logs, so that snapshots are needed.
    fn compact_if_long(&mut self, id: NodeId) {
        let Some(up) = &self.node(id).up else { return };
        if up.log.len() > self.plan.log_entries_max {
            // Not before the outputs of the protocol are carried out.
            let incarnation = self.node(id).incarnation;
            self.schedule(1, Due::Compact(id, incarnation));
        }
    }

    /// Flushes the machine, and purges the log except for the last `keep` applied entries.
    pub(crate) fn compact(&mut self, id: NodeId, keep: u64) {
        let Some(up) = &mut self.node_mut(id).up else { return };
        up.machine.flush().expect("a machine in memory");
        let durable = up.machine.applied().index;
        self.step(id, Event::Compact(LogIndex(durable.0.saturating_sub(keep))));
        if let Some(up) = &mut self.node_mut(id).up {
            let purged = up.raft.purged().index.min(up.machine.applied().index);
            up.purge_through(purged);
        }
    }
}

impl Up {
    pub(crate) fn machine_applied(&self) -> LogIndex {
        self.machine.applied().index
    }

    /// Removes and returns requests that wait for entries up to `last`.
    fn due(&mut self, last: LogIndex) -> Vec<(LogId, ClientRequest)> {
        let later = self.waiters.split_off(&(last.0 + 1));
        let mut due: Vec<_> = std::mem::replace(&mut self.waiters, later).into_values().collect();
        let orphans = self.orphans.extract_if(.., |(at, ..)| at.index <= last);
        due.extend(orphans.map(|(at, asked, _)| (at, asked)));
        due
    }
}

/// Returns an entry for a witness, without its command.
fn withhold(entry: &mut Entry) {
    if matches!(entry.payload, Payload::Command(_)) {
        entry.payload = Payload::Withheld;
    }
}
