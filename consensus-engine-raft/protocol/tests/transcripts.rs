//! Golden transcripts: stories in `tests/transcripts/*.txt`. A line that begins with `>` says what happens, the lines below
//! it what comes of it, as the protocol did it. `UPDATE_TRANSCRIPTS=1` writes what it does now.
//!
//! ```text
//! > cluster 0 1 2              three voters with empty logs (`drift 10`: with leases; `one by one`: entries are sent so)
//! > node 3 term 2 log 1 1 2    one more node, which has this log; `join`: which knows nobody
//! > timeout 1                  node 1 has heard nothing for an election timeout (the clock goes on for all)
//! > wait 100                   the clock goes on, nobody notices
//! > pass 1000                  this time goes by as it would, of which nothing is told but what it came to; `pass until 2`:
//!                              the time until node 2's next deadline
//! > heartbeat 0                a leader's heartbeat is due
//! > propose 0, read 0, lease read 0, change 0 +3 joining -1, transfer 0 1, compact 0 4
//! > deliver                    all messages, and those that they bring about; `deliver 0-1`: on this link; `once`: no more
//! > lose 0-1                   what is on its way there
//! > cut 2, heal                nothing goes to or from it
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
fn the_stories_are_as_they_were() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts");
    let update = std::env::var_os("UPDATE_TRANSCRIPTS").is_some();
    let mut count = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let before = std::fs::read_to_string(&path).unwrap();
        let now = Story::default().tell(&before);
        if update {
            std::fs::write(&path, &now).unwrap();
        }
        let differs = before.lines().zip(now.lines()).position(|(before, now)| before != now);
        assert!(
            update || before == now,
            "{}, line {}: it goes another way; see it with UPDATE_TRANSCRIPTS=1 and git diff",
            path.display(),
            differs.unwrap_or(before.lines().count().min(now.lines().count())) + 1
        );
        count += 1;
    }
    assert!(count >= 12, "{count} stories");
}

#[derive(Clone, Debug, Default)]
struct Disk {
    storage: StorageId,
    hard: HardState,
    purged: SnapshotMeta,
    entries: BTreeMap<LogIndex, (LogId, Option<Arc<Membership>>)>,
    /// What the state machine holds.
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
struct Story {
    now: Time,
    drift: u32,
    one_by_one: bool,
    nodes: BTreeMap<NodeId, Node>,
    /// The configurations that were ever in a log.
    configurations: BTreeMap<LogId, Arc<Membership>>,
    network: VecDeque<(NodeId, NodeId, Packet)>,
    cut: BTreeSet<NodeId>,
    tokens: u64,
    told: String,
}

fn number(word: &str) -> u64 {
    word.parse().unwrap_or_else(|_| panic!("{word:?} is no number"))
}

fn id(word: &str) -> NodeId {
    NodeId(number(word))
}

impl Story {
    fn tell(mut self, script: &str) -> String {
        for line in script.lines() {
            if let Some(command) = line.strip_prefix('>') {
                writeln!(self.told, "{line}").unwrap();
                let words: Vec<&str> = command.split_whitespace().collect();
                self.act(&words);
            } else if line.is_empty() || line.starts_with('#') {
                writeln!(self.told, "{line}").unwrap();
            }
        }
        self.told
    }

    fn say(&mut self, text: impl std::fmt::Display) {
        writeln!(self.told, "{text}").unwrap();
    }

    fn act(&mut self, words: &[&str]) {
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
            ["node", node, "term", term, "log", terms @ ..] => self.begin(id(node), number(term), terms),
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
            other => panic!("{other:?} is no command"),
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
            self.begin(id(voter), 0, &[]);
        }
    }

    /// Starts a node whose log has the first configuration and entries of these terms.
    fn begin(&mut self, node: NodeId, term: u64, terms: &[&str]) {
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

    /// The clock goes on to this node's deadline.
    fn tick(&mut self, node: NodeId) {
        let deadline = self.nodes[&node].raft.as_ref().and_then(Raft::next_deadline);
        self.now = self.now.max(deadline.expect("it waits for nothing"));
        self.step(node, Event::Tick);
    }

    fn pass(&mut self, time: Duration) {
        let (told, end) = (std::mem::take(&mut self.told), self.now + time);
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
        (self.now, self.told) = (end, told);
        for (id, node) in &self.nodes {
            let Some(raft) = &node.raft else { continue };
            let (role, term, last, commit) = (raft.role(), raft.term(), raft.last_log(), raft.commit());
            let line = format!(
                "      {id} is {role} in term {term}; its log ends with {last}, committed up to {commit}"
            );
            writeln!(self.told, "{line}").unwrap();
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
        let (a, b) = link.split_once('-').expect("a link is from-to");
        (a == "*" || id(a) == from) && (b == "*" || id(b) == to)
    }

    fn lose(&mut self, link: &str) {
        let network = std::mem::take(&mut self.network);
        for (from, to, packet) in network {
            if Self::on_link(link, from, to) {
                self.say(format!("{from} -> {to}  {}: lost", describe(&packet)));
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
            self.say(format!("{from} -> {to}  {}{}", describe(&packet), if lost { ": lost" } else { "" }));
            if !lost {
                self.arrive(from, to, packet);
            }
        }
    }

    fn arrive(&mut self, from: NodeId, to: NodeId, packet: Packet) {
        let event = match packet {
            Packet::ControlMessage(reply) => reply.into_event(from),
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
            let said = match raft.propose(now, &[100]) {
                Some(id) => format!("      {node} appends {id}"),
                None => format!("      {node} takes no proposal"),
            };
            (Vec::new(), Some(said))
        });
    }

    /// Makes a turn of one call, which may have something to say of itself.
    fn call(&mut self, node: NodeId, call: impl FnOnce(&mut Raft, Time) -> (Vec<Output>, Option<String>)) {
        let now = self.now;
        let Some(raft) = self.nodes.get_mut(&node).and_then(|node| node.raft.as_mut()) else { return };
        let (role, term, commit) = (raft.role(), raft.term(), raft.commit());
        let (mut outputs, said) = call(raft, now);
        outputs.extend(raft.finish_turn(now));
        self.show(node, role, term, commit);
        said.into_iter().for_each(|said| self.say(said));
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
            self.say(format!("      {node} is {new_role} in term {new_term}"));
        }
        if membership != self.nodes[&node].membership {
            self.say(format!("      {node} goes by: {membership}"));
            self.nodes.get_mut(&node).unwrap().membership = membership;
        }
        if commit != new_commit {
            let last = last.map_or_else(|| new_commit.to_string(), |id| id.to_string());
            self.say(format!("      {node} knows {last} to be committed"));
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
            Output::Send(to, reply) => self.network.push_back((node, to, Packet::ControlMessage(reply))),
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
            Output::TwoLeaders(leaders) => self.say(format!("      {node} ends: {leaders}")),
            Output::Contradicted(contradiction) => {
                let (own, theirs) = (contradiction.own, contradiction.theirs);
                self.say(format!("      {node} ends: its {own} is committed, the leader has {theirs} there"));
            }
            Output::Install(meta) => {
                self.say(format!("      {node} replaces its state by the snapshot up to {}", meta.last));
                self.nodes.get_mut(&node).unwrap().disk.machine = meta.last.index;
                self.step(node, Event::SnapshotInstalled);
            }
            Output::SnapshotSettled(verdict) => {
                let last = self.nodes[&node].raft.as_ref().unwrap().commit();
                let installed = Some(last).filter(|_| verdict == ArrivalOutcome::Accepted);
                if let Some(from) = self.nodes.get_mut(&node).unwrap().installing_from.take() {
                    self.network.push_back((node, from, Packet::Installed(installed)));
                }
            }
            Output::Replaced(after) => {
                let lost = self.nodes[&node].disk.entries.range(after.next()..).next().is_some();
                if lost {
                    self.say(format!("      {node} drops its entries after {after}, which conflict"));
                }
            }
            Output::ReadReady(token, index) => {
                self.say(format!("      {node}: read {token} sees everything up to {index}"));
            }
            Output::ReadRefused(token) => self.say(format!("      {node}: read {token} is refused")),
            Output::Changed(..) => self.say(format!("      {node}: the change is done")),
            Output::ChangeRefused(_, why) => {
                self.say(format!("      {node}: the change is not done: {why:?}"));
            }
            Output::TransferEnded(_, Ok(())) => self.say(format!("      {node} has handed over")),
            Output::TransferEnded(_, Err(why)) => self.say(format!("      {node} leads on: {why:?}")),
            Output::AppendedBlank(_) | Output::Apply(_) => {}
        }
    }
}

fn describe(packet: &Packet) -> String {
    match packet {
        Packet::ControlMessage(ControlMessage::VoteRequest(request)) => {
            let what = match request.kind {
                VoteKind::PreVote => "would you vote for me",
                VoteKind::Vote => "vote for me",
                VoteKind::Transfer => "vote for me, the leader wants it",
            };
            format!("{what} in term {}? my log ends with {}", request.term, request.last_log)
        }
        Packet::ControlMessage(ControlMessage::VoteResponse(response)) => {
            match (response.granted, response.kind) {
                (true, VoteKind::PreVote) => format!("I would, in term {}", response.term),
                (true, _) => format!("you have my vote in term {}", response.term),
                (false, _) => format!("no; I am in term {}", response.term),
            }
        }
        Packet::ControlMessage(ControlMessage::AppendResponse(response)) => match response.outcome {
            AppendOutcome::Accepted { matched } => {
                format!("term {}: I have all up to {matched}", response.term)
            }
            AppendOutcome::Rejected { prev, hint } => {
                format!("term {}: I lack your {prev}; we may agree at {hint}", response.term)
            }
        },
        Packet::ControlMessage(ControlMessage::TimeoutNow(request)) => {
            format!("term {}: stand for election now", request.term)
        }
        Packet::ControlMessage(ControlMessage::ReadIndexRequest(_)) => "from where may I read?".to_owned(),
        Packet::ControlMessage(ControlMessage::ReadIndexResponse(response)) => match response.index {
            Some(index) => format!("you may read from {index}"),
            None => "I do not lead".to_owned(),
        },
        Packet::Append(append, entries) => {
            let terms: Vec<String> = entries.iter().map(|entry| entry.term.to_string()).collect();
            let entries = if terms.is_empty() {
                "nothing".to_owned()
            } else {
                format!("entries of terms {}", terms.join(" "))
            };
            format!(
                "term {}: after {} comes {entries}; committed {}",
                append.term, append.prev, append.commit
            )
        }
        Packet::Snapshot(term, meta) => {
            format!("term {term}: snapshot up to {} ({})", meta.last, meta.membership)
        }
        Packet::Installed(Some(last)) => format!("I have the state up to {last}"),
        Packet::Installed(None) => "I cannot use the snapshot".to_owned(),
    }
}
