//! Golden transcripts in `tests/transcripts/*.txt`. A line that starts with `>` is a command, and the lines below it show its
//! effects, as the protocol produced them. With `UPDATE_TRANSCRIPTS=1` the test writes the current effects.
//!
//! ```text
//! > cluster 0 1 2              three voters with empty logs (`drift 10`: with leases; `one by one`: one entry per message)
//! > node 3 term 2 log 1 1 2    another node with this log; `join` instead: with an empty log and no configuration
//! > timeout 1                  node 1 has an election timeout (the clock of all nodes advances)
//! > wait 100                   the clock advances by 100 ms, without ticks
//! > pass 1000                  the cluster runs for 1000 ms; only the result is shown; `pass until 2`: until node 2's next
//!                              deadline
//! > heartbeat 0                node 0 sends its heartbeat
//! > propose 0, read 0, lease read 0, change 0 +3 joining -1, transfer 0 1, compact 0 4
//! > deliver                    deliver all messages and those that they cause; `deliver 0-1`: on this link; `once`: no further ones
//! > lose 0-1                   lose all messages in transit on this link
//! > cut 2, heal                lose all messages from and to node 2; end this
//! > disk 0 stops, disk 0 goes on, crash 0, restart 0, empty 0
//! ```

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt::Write,
    path::Path,
    sync::Arc,
    time::Duration,
};

use consensus_core::{
    AppendOutcome, HardState, LogId, LogIndex, LogState, Member, MemberChange, MemberKind, Membership,
    NodeId, Role, SnapshotMeta, StorageId, Term, VoteKind,
};
use consensus_raft_protocol::{
    Append, ArrivalOutcome, Config, ControlMessage, EntryInfo, Event, InterruptedInstall, Output, Raft,
    Restored, Time,
};

#[test]
fn transcripts_are_unchanged() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts");
    let update = std::env::var_os("UPDATE_TRANSCRIPTS").is_some();
    let mut count = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let before = std::fs::read_to_string(&path).unwrap();
        let now = Transcript::default().run(&before);
        if update {
            std::fs::write(&path, &now).unwrap();
        }
        let differs = before.lines().zip(now.lines()).position(|(before, now)| before != now);
        assert!(
            update || before == now,
            "{}, line {}: the effects changed; see them with UPDATE_TRANSCRIPTS=1 and git diff",
            path.display(),
            differs.unwrap_or(before.lines().count().min(now.lines().count())) + 1
        );
        count += 1;
    }
    assert!(count >= 12, "{count} transcripts");
}

#[derive(Clone, Debug, Default)]
struct Disk {
    storage: StorageId,
    hard: HardState,
    purged: SnapshotMeta,
    entries: BTreeMap<LogIndex, (LogId, Option<Arc<Membership>>)>,
    /// Last index that the state machine has applied.
    machine: LogIndex,
}

struct Node {
    disk: Disk,
    raft: Option<Raft>,
    disk_stops: bool,
    membership: Arc<Membership>,
    installing_from: Option<NodeId>,
}

enum Packet {
    ControlMessage(ControlMessage),
    Append(Append, Vec<EntryInfo>),
    Snapshot(Term, SnapshotMeta),
    Installed(Option<LogIndex>),
}

#[derive(Default)]
struct Transcript {
    now: Time,
    drift: u32,
    one_by_one: bool,
    nodes: BTreeMap<NodeId, Node>,
    /// All configurations that were ever in a log.
    configurations: BTreeMap<LogId, Arc<Membership>>,
    network: VecDeque<(NodeId, NodeId, Packet)>,
    cut: BTreeSet<NodeId>,
    tokens: u64,
    output: String,
}

fn number(word: &str) -> u64 {
    word.parse().unwrap_or_else(|_| panic!("{word:?} is not a number"))
}

fn id(word: &str) -> NodeId {
    NodeId(number(word))
}

impl Transcript {
    fn run(mut self, script: &str) -> String {
        for line in script.lines() {
            if let Some(command) = line.strip_prefix('>') {
                writeln!(self.output, "{line}").unwrap();
                let words: Vec<&str> = command.split_whitespace().collect();
                self.execute(&words);
            } else if line.is_empty() || line.starts_with('#') {
                writeln!(self.output, "{line}").unwrap();
            }
        }
        self.output
    }

    fn print(&mut self, text: impl std::fmt::Display) {
        writeln!(self.output, "{text}").unwrap();
    }

    fn execute(&mut self, words: &[&str]) {
        match words {
            ["cluster", voters @ .., "drift", percent] => {
                self.drift = number(percent) as u32;
                self.cluster(voters);
            }
            ["cluster", voters @ .., "one", "by", "one"] => {
                self.one_by_one = true;
                self.cluster(voters);
            }
            ["cluster", voters @ ..] => self.cluster(voters),
            ["pass", "until", node] => {
                let deadline = self.nodes[&id(node)].raft.as_ref().and_then(Raft::next_deadline).unwrap();
                self.pass(deadline.saturating_sub(self.now + Duration::from_nanos(1)));
            }
            ["pass", ms] => self.pass(Duration::from_millis(number(ms))),
            ["node", node, "join"] => {
                let storage = StorageId(number(node) + 1);
                self.start(id(node), Disk { storage, ..Disk::default() });
            }
            ["node", node, "term", term, "log", terms @ ..] => {
                self.start_with_log(id(node), number(term), terms);
            }
            ["timeout", node] => self.tick(id(node)),
            ["heartbeat", node] => self.tick(id(node)),
            ["wait", ms] => self.now += Duration::from_millis(number(ms)),
            ["propose", node] => {
                self.propose(id(node));
            }
            ["read", node] => self.read(id(node), false),
            ["lease", "read", node] => self.read(id(node), true),
            ["change", node, changes @ ..] => self.change(id(node), changes),
            ["transfer", node, to] => {
                let token = self.token();
                self.step(id(node), Event::Transfer { token, to: Some(id(to)) });
            }
            ["compact", node, through] => {
                let through = LogIndex(number(through));
                self.nodes.get_mut(&id(node)).unwrap().disk.machine = through;
                self.step(id(node), Event::Compact(through));
            }
            ["deliver", rest @ ..] => self.deliver(rest),
            ["lose", link] => self.lose(link),
            ["cut", node] => {
                self.cut.insert(id(node));
            }
            ["heal"] => self.cut.clear(),
            ["disk", node, "stops"] => self.nodes.get_mut(&id(node)).unwrap().disk_stops = true,
            ["disk", node, "goes", "on"] => {
                self.nodes.get_mut(&id(node)).unwrap().disk_stops = false;
                self.step(id(node), Event::Persisted);
            }
            ["crash", node] => self.nodes.get_mut(&id(node)).unwrap().raft = None,
            ["restart", node] => {
                let disk = self.nodes[&id(node)].disk.clone();
                self.start(id(node), disk);
            }
            ["empty", node] => {
                let storage = StorageId(self.nodes[&id(node)].disk.storage.0 + 100);
                let first = self.configurations[&LogId::new(0, 1)].clone();
                let mut disk = Disk { storage, ..Disk::default() };
                disk.entries.insert(LogIndex(1), (LogId::new(0, 1), Some(first)));
                self.start(id(node), disk);
            }
            other => panic!("{other:?} is not a command"),
        }
    }

    fn token(&mut self) -> u64 {
        self.tokens += 1;
        self.tokens
    }

    fn cluster(&mut self, voters: &[&str]) {
        let membership = Arc::new(Membership::of_voters(voters.iter().map(|word| number(word))));
        self.configurations.insert(LogId::new(0, 1), membership);
        for voter in voters {
            self.start_with_log(id(voter), 0, &[]);
        }
    }

    /// Starts a node whose log has the first configuration and entries of these terms.
    fn start_with_log(&mut self, node: NodeId, term: u64, terms: &[&str]) {
        let mut disk =
            Disk { hard: HardState { term: Term(term), ..HardState::default() }, ..Disk::default() };
        for (term, index) in std::iter::once(0).chain(terms.iter().map(|word| number(word))).zip(1..) {
            let id = LogId::new(term, index);
            disk.entries.insert(id.index, (id, self.configurations.get(&id).cloned()));
        }
        disk.storage = StorageId(node.0 + 1);
        self.start(node, disk);
    }

    fn start(&mut self, node: NodeId, mut disk: Disk) {
        match Raft::interrupted_install(&disk.hard, disk.machine) {
            Some(InterruptedInstall::Finish(meta)) => {
                disk.entries.clear();
                disk.purged = meta;
            }
            Some(InterruptedInstall::Discard) | None => {}
        }
        disk.hard.installing = None;
        let configuration = |(id, membership): &(LogId, Option<Arc<Membership>>)| {
            Some((id.index, (**membership.as_ref()?).clone()))
        };
        let log = LogState {
            storage: disk.storage,
            hard_state: disk.hard.clone(),
            purged: disk.purged.clone(),
            entries: disk.entries.values().map(|(id, _)| (*id, 100)).collect(),
            memberships: disk.entries.values().filter_map(configuration).collect(),
            ..LogState::default()
        };
        let mut config = Config::new(node);
        (config.lease_drift_percent, config.seed) = (self.drift, node.0);
        if self.one_by_one {
            config.append_entries_max = 1;
        }
        let raft = Raft::new(config, Restored { log, applied: disk.machine }, self.now).unwrap();
        let membership = raft.membership().clone();
        let raft = Some(raft);
        self.nodes.insert(node, Node { disk, raft, disk_stops: false, membership, installing_from: None });
    }

    /// Advances the clock to this node's deadline.
    fn tick(&mut self, node: NodeId) {
        let deadline = self.nodes[&node].raft.as_ref().and_then(Raft::next_deadline);
        self.now = self.now.max(deadline.expect("the node has no deadline"));
        self.step(node, Event::Tick);
    }

    fn pass(&mut self, time: Duration) {
        let (output, end) = (std::mem::take(&mut self.output), self.now + time);
        loop {
            self.deliver(&[]);
            let deadline = |(id, node): (&NodeId, &Node)| Some((node.raft.as_ref()?.next_deadline()?, *id));
            match self.nodes.iter().filter_map(deadline).min() {
                Some((at, id)) if at <= end => {
                    self.now = self.now.max(at);
                    self.step(id, Event::Tick);
                }
                _ => break,
            }
        }
        (self.now, self.output) = (end, output);
        for (id, node) in &self.nodes {
            let Some(raft) = &node.raft else { continue };
            let (role, term, last, commit) = (raft.role(), raft.term(), raft.last_log(), raft.commit());
            let line =
                format!("      {id} is {role} in term {term}; last entry {last}, commit index {commit}");
            writeln!(self.output, "{line}").unwrap();
        }
    }

    fn read(&mut self, node: NodeId, lease: bool) {
        let token = self.token();
        self.step(node, Event::Read { token, lease });
    }

    fn change(&mut self, node: NodeId, mut words: &[&str]) {
        let mut changes = Vec::new();
        while let [first, rest @ ..] = words {
            words = rest;
            if let Some(gone) = first.strip_prefix('-') {
                changes.push(MemberChange::Remove(id(gone)));
                continue;
            }
            let kind = match words {
                ["learner", rest @ ..] => (words = rest, MemberKind::Learner).1,
                ["joining", rest @ ..] => (words = rest, MemberKind::Joining).1,
                ["witness", rest @ ..] => (words = rest, MemberKind::Witness).1,
                _ => MemberKind::Voter,
            };
            changes.push(MemberChange::Set(id(first.trim_start_matches('+')), Member::new(kind)));
        }
        let token = self.token();
        self.step(node, Event::ChangeMembership { token, changes });
    }

    fn on_link(link: &str, from: NodeId, to: NodeId) -> bool {
        let (a, b) = link.split_once('-').expect("a link has the form from-to");
        (a == "*" || id(a) == from) && (b == "*" || id(b) == to)
    }

    fn lose(&mut self, link: &str) {
        let network = std::mem::take(&mut self.network);
        for (from, to, packet) in network {
            if Self::on_link(link, from, to) {
                self.print(format!("{from} -> {to}  {}: lost", describe(&packet)));
            } else {
                self.network.push_back((from, to, packet));
            }
        }
    }

    fn deliver(&mut self, rest: &[&str]) {
        let link = rest.iter().find(|word| word.contains('-')).copied().unwrap_or("*-*");
        let mut due = if rest.contains(&"once") { self.network.len() } else { 1000 };
        while due > 0 {
            let next = self.network.iter().position(|(from, to, _)| Self::on_link(link, *from, *to));
            let Some((from, to, packet)) = next.and_then(|at| self.network.remove(at)) else { return };
            due -= 1;
            let down = self.nodes.get(&to).is_none_or(|node| node.raft.is_none());
            let lost = down || self.cut.contains(&from) || self.cut.contains(&to);
            self.print(format!("{from} -> {to}  {}{}", describe(&packet), if lost { ": lost" } else { "" }));
            if !lost {
                self.arrive(from, to, packet);
            }
        }
    }

    fn arrive(&mut self, from: NodeId, to: NodeId, packet: Packet) {
        let event = match packet {
            Packet::ControlMessage(message) => message.into_event(from),
            Packet::Append(append, entries) => Event::Append { from, append, entries },
            Packet::Installed(last) => Event::SnapshotSent(from, last),
            Packet::Snapshot(term, meta) => {
                self.nodes.get_mut(&to).unwrap().installing_from = Some(from);
                Event::SnapshotArrived { from, term, meta }
            }
        };
        self.step(to, event);
    }

    fn step(&mut self, node: NodeId, event: Event) {
        self.call(node, |raft, now| (raft.step(now, event), None));
    }

    fn propose(&mut self, node: NodeId) {
        self.call(node, |raft, now| {
            let text = match raft.propose(now, &[100]) {
                Some(id) => format!("      {node} appends {id}"),
                None => format!("      {node} refuses the proposal"),
            };
            (Vec::new(), Some(text))
        });
    }

    /// Makes a turn of one call. The call may return a line to print.
    fn call(&mut self, node: NodeId, call: impl FnOnce(&mut Raft, Time) -> (Vec<Output>, Option<String>)) {
        let now = self.now;
        let Some(raft) = self.nodes.get_mut(&node).and_then(|node| node.raft.as_mut()) else { return };
        let (role, term, commit) = (raft.role(), raft.term(), raft.commit());
        let (mut outputs, text) = call(raft, now);
        outputs.extend(raft.finish_turn(now));
        self.show(node, role, term, commit);
        text.into_iter().for_each(|text| self.print(text));
        for output in outputs {
            self.carry_out(node, output);
        }
        self.persist(node);
    }

    fn show(&mut self, node: NodeId, role: Role, term: Term, commit: LogIndex) {
        let raft = self.nodes[&node].raft.as_ref().unwrap();
        let (new_role, new_term, new_commit) = (raft.role(), raft.term(), raft.commit());
        let (last, membership) = (raft.id_at(new_commit), raft.membership().clone());
        if (role, term) != (new_role, new_term) {
            self.print(format!("      {node} is {new_role} in term {new_term}"));
        }
        if membership != self.nodes[&node].membership {
            self.print(format!("      {node} has configuration: {membership}"));
            self.nodes.get_mut(&node).unwrap().membership = membership;
        }
        if commit != new_commit {
            let last = last.map_or_else(|| new_commit.to_string(), |id| id.to_string());
            self.print(format!("      {node} has commit index {last}"));
        }
    }

    fn persist(&mut self, node: NodeId) {
        loop {
            let Node { disk, raft: Some(raft), disk_stops: false, .. } = self.nodes.get_mut(&node).unwrap()
            else {
                return;
            };
            let Some(persist) = raft.take_persist() else { return };
            if let Some(meta) = persist.purge {
                disk.entries.retain(|index, _| *index > meta.last.index);
                disk.purged = meta;
            }
            if let Some(after) = persist.truncate_after {
                disk.entries.retain(|index, _| *index <= after);
            }
            let (after, last) = persist.append;
            for index in after.0 + 1..=last.0 {
                let id = raft.id_at(LogIndex(index)).unwrap();
                disk.entries.insert(id.index, (id, self.configurations.get(&id).cloned()));
            }
            disk.hard = persist.hard_state.unwrap_or_else(|| disk.hard.clone());
            self.step(node, Event::Persisted);
        }
    }

    fn carry_out(&mut self, node: NodeId, output: Output) {
        match output {
            Output::Send(to, message) => self.network.push_back((node, to, Packet::ControlMessage(message))),
            Output::SendAppend(to, append) => {
                let raft = self.nodes[&node].raft.as_ref().unwrap();
                let entry = |index| {
                    let id = raft.id_at(LogIndex(index)).unwrap();
                    EntryInfo {
                        term: id.term,
                        size_bytes: 100,
                        membership: self.configurations.get(&id).cloned(),
                    }
                };
                let entries = (append.prev.index.0 + 1..=append.last.0).map(entry).collect();
                self.network.push_back((node, to, Packet::Append(append, entries)));
            }
            Output::SendSnapshot(to) => {
                let raft = self.nodes[&node].raft.as_ref().unwrap();
                let last = raft.id_at(raft.commit()).unwrap();
                let meta = SnapshotMeta { last, membership: (*raft.membership_at(last.index)).clone() };
                self.network.push_back((node, to, Packet::Snapshot(raft.term(), meta)));
            }
            Output::AppendedMembership(id, membership) => {
                self.configurations.insert(id, membership);
            }
            Output::TwoLeaders(leaders) => self.print(format!("      {node} stops: {leaders}")),
            Output::Contradicted(contradiction) => {
                let (own, theirs) = (contradiction.own, contradiction.theirs);
                self.print(format!(
                    "      {node} stops: its entry {own} is committed, the leader has {theirs} in its place"
                ));
            }
            Output::Install(meta) => {
                self.print(format!("      {node} restores the snapshot up to {}", meta.last));
                self.nodes.get_mut(&node).unwrap().disk.machine = meta.last.index;
                self.step(node, Event::SnapshotInstalled);
            }
            Output::SnapshotSettled(outcome) => {
                let last = self.nodes[&node].raft.as_ref().unwrap().commit();
                let installed = Some(last).filter(|_| outcome == ArrivalOutcome::Accepted);
                if let Some(from) = self.nodes.get_mut(&node).unwrap().installing_from.take() {
                    self.network.push_back((node, from, Packet::Installed(installed)));
                }
            }
            Output::Replaced(after) => {
                let has_conflict = self.nodes[&node].disk.entries.range(after.next()..).next().is_some();
                if has_conflict {
                    self.print(format!(
                        "      {node} truncates its log after {after}, because of a conflict"
                    ));
                }
            }
            Output::ReadReady(token, index) => {
                self.print(format!("      {node}: read {token} may be served at {index}"));
            }
            Output::ReadRefused(token) => self.print(format!("      {node}: read {token} is refused")),
            Output::Changed(..) => self.print(format!("      {node}: the change is committed")),
            Output::ChangeRefused(_, why) => {
                self.print(format!("      {node}: the change is refused: {why:?}"));
            }
            Output::TransferEnded(_, Ok(())) => {
                self.print(format!("      {node} has transferred leadership"));
            }
            Output::TransferEnded(_, Err(why)) => {
                self.print(format!("      {node} is still leader: {why:?}"));
            }
            Output::AppendedBlank(_) | Output::Apply(_) => {}
        }
    }
}

fn describe(packet: &Packet) -> String {
    match packet {
        Packet::ControlMessage(ControlMessage::VoteRequest(request)) => {
            let what = match request.kind {
                VoteKind::PreVote => "pre-vote request",
                VoteKind::Vote => "vote request",
                VoteKind::Transfer => "vote request for a transfer",
            };
            format!("term {}: {what}, last entry {}", request.term, request.last_log)
        }
        Packet::ControlMessage(ControlMessage::VoteResponse(response)) => {
            match (response.granted, response.kind) {
                (true, VoteKind::PreVote) => format!("term {}: pre-vote granted", response.term),
                (true, _) => format!("term {}: vote granted", response.term),
                (false, _) => format!("term {}: refused", response.term),
            }
        }
        Packet::ControlMessage(ControlMessage::AppendResponse(response)) => match response.outcome {
            AppendOutcome::Accepted { matched } => {
                format!("term {}: accepted up to {matched}", response.term)
            }
            AppendOutcome::Rejected { prev, hint } => {
                format!("term {}: rejected after {prev}; the logs may agree at {hint}", response.term)
            }
        },
        Packet::ControlMessage(ControlMessage::TimeoutNow(request)) => {
            format!("term {}: campaign now", request.term)
        }
        Packet::ControlMessage(ControlMessage::ReadIndexRequest(_)) => "read index request".to_owned(),
        Packet::ControlMessage(ControlMessage::ReadIndexResponse(response)) => match response.index {
            Some(index) => format!("read index {index}"),
            None => "read index refused".to_owned(),
        },
        Packet::Append(append, entries) => {
            let terms: Vec<String> = entries.iter().map(|entry| entry.term.to_string()).collect();
            let entries = if terms.is_empty() {
                "no entries".to_owned()
            } else {
                format!("entries of terms {}", terms.join(" "))
            };
            format!("term {}: after {}: {entries}; commit index {}", append.term, append.prev, append.commit)
        }
        Packet::Snapshot(term, meta) => {
            format!("term {term}: snapshot up to {} ({})", meta.last, meta.membership)
        }
        Packet::Installed(Some(last)) => format!("snapshot installed up to {last}"),
        Packet::Installed(None) => "snapshot refused".to_owned(),
    }
}
