//! The parameters and faults of a seed. Each seed has some kinds of faults and not others (swarm testing, Groce et al. 2012):
//! with all kinds at once the rare combinations never occur.

use crate::random::Random;

/// Kinds of faults, and other requests to a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A node crashes between any two effects, and restarts.
    Crash,
    /// The leader crashes, and restarts.
    CrashLeader,
    /// The leader pauses for about an election timeout.
    PauseLeader,
    /// All nodes crash at once.
    CrashAll,
    /// Some nodes are partitioned from the others, in both directions.
    Partition,
    /// Some links are cut in one direction.
    OneWay,
    /// The leader is isolated together with the clients that stay with it.
    IsolateLeader,
    /// All links work again.
    HealNetwork,
    /// A process pauses for a while, but its clock does not.
    Pause,
    /// A disk becomes slow.
    SlowDisk,
    /// A disk has no room for a while.
    FullDisk,
    /// A write fails; the node stops.
    FailedWrite,
    /// Records are damaged, on one node.
    Damage,
    /// A disk is replaced by an empty one.
    Wipe,
    /// The log is compacted.
    Compact,
    /// Members are changed.
    Members,
    /// Leadership is transferred.
    Transfer,
    /// Some nodes lose their connection to the leader, which is still running.
    Disconnect,
    /// Operators copy the data directories of all nodes, as backups.
    CopyDisks,
    /// An operator restores an old copy of a node's data directory.
    RestoreCopy,
    /// An operator restores old copies of several nodes' data directories.
    PutBackSeveral,
    /// An operator empties a node's disk and starts the node with its usual command.
    WipeAndStart,
    /// An operator empties a node's disk and starts the node with `--join`.
    WipeAndJoin,
    /// An operator removes a member, empties its disk, and adds it with the same id, in several changes.
    Replace,
    /// An operator does the same in one change.
    ReplaceInOneChange,
    /// An operator starts nodes without a log with a first configuration of all nodes, although a cluster exists.
    OtherFirstConfiguration,
    /// A write does not return for a long time.
    StallDisk,
    /// The state machine does not return from an apply for a long time.
    StallApply,
    /// A node cannot take snapshots for a while.
    NoSnapshot,
    /// A node has no room for snapshots for a while.
    NoRoomForSnapshot,
    /// For a while messages are exchanged with a different cluster that has the same ids.
    Meet,
}

/// All faults, with their frequency in a run that has them.
const FAULTS: &[(Fault, u64)] = &[
    (Fault::Crash, 4),
    (Fault::CrashLeader, 4),
    (Fault::PauseLeader, 3),
    (Fault::CrashAll, 1),
    (Fault::Partition, 4),
    (Fault::OneWay, 3),
    (Fault::IsolateLeader, 3),
    (Fault::HealNetwork, 0),
    (Fault::Pause, 3),
    (Fault::SlowDisk, 2),
    (Fault::FullDisk, 1),
    (Fault::FailedWrite, 1),
    (Fault::Damage, 2),
    (Fault::Wipe, 1),
    (Fault::Compact, 8),
    (Fault::Members, 4),
    (Fault::Transfer, 3),
    (Fault::Disconnect, 3),
];

/// Operators' mistakes, and disks and state machines that hang, with their frequency in a run that has them.
const MISTAKES: &[(Fault, u64)] = &[
    (Fault::RestoreCopy, 2),
    (Fault::PutBackSeveral, 1),
    (Fault::WipeAndStart, 2),
    (Fault::WipeAndJoin, 2),
    (Fault::Replace, 3),
    (Fault::ReplaceInOneChange, 2),
    (Fault::OtherFirstConfiguration, 2),
    (Fault::StallDisk, 1),
    (Fault::StallApply, 1),
    (Fault::NoSnapshot, 1),
    (Fault::NoRoomForSnapshot, 1),
    (Fault::Meet, 2),
];

/// Parameters of a run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Number of voters at the start.
    pub voters: u64,
    /// Number of nodes that can be added.
    pub spares: u64,
    /// Whether one of the voters is a witness.
    pub witness: bool,
    /// Percentage of messages that are lost.
    pub loss: u64,
    /// Percentage of messages that are duplicated.
    pub duplication: u64,
    /// Number of messages out of a thousand that take seconds.
    pub stragglers: u64,
    /// Maximum latency of a message in milliseconds.
    pub delay_max_ms: u64,
    /// Election timeout in milliseconds; a heartbeat is a fifth of it.
    pub election_ms: u64,
    /// Maximum difference of clock speeds in percent; leases are used if it is not more than `lease_drift`.
    pub drift: u64,
    /// Drift that the nodes are configured for, in percent; 0 disables leases.
    pub lease_drift: u32,
    /// Number of clients, each with one request in flight.
    pub clients: u64,
    /// Percentage of requests that are reads.
    pub reads: u64,
    /// Maximum pause of a client between two requests in milliseconds.
    pub think_max_ms: u64,
    /// Maximum duration of an apply in milliseconds.
    pub apply_max_ms: u64,
    /// Whether several events are processed in one turn, as in a driver under load.
    pub turns: bool,
    /// Maximum number of entries in one message.
    pub append_entries_max: usize,
    /// Maximum number of messages in flight to a follower.
    pub inflight_messages_max: usize,
    /// Maximum bytes in flight to a follower.
    pub inflight_bytes_max: u64,
    /// Number of entries above which a log is compacted.
    pub log_entries_max: usize,
    /// Number of entries that a compaction keeps.
    pub log_entries_kept: u64,
    /// Whether nodes have different priorities.
    pub priorities: bool,
    /// Faults of the run, with their frequency.
    pub faults: Vec<(Fault, u64)>,
    /// Maximum pause between two faults in milliseconds.
    pub fault_pause_ms: u64,
    /// Duration of the period with faults in milliseconds.
    pub fault_period_ms: u64,
    /// Maximum number of operators' mistakes on disks in the run.
    pub mistakes_max: u64,
}

impl Plan {
    /// Returns the plan of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(seed, 1);
        let voters = random.of(&[3, 3, 3, 3, 5, 5, 4, 2, 1]);
        let (clock, tolerated) = random.of(&[(0, 0), (0, 10), (9, 10), (9, 10), (9, 10), (40, 0)]);
        let mut faults: Vec<_> = FAULTS.iter().copied().filter(|_| random.percent(50)).collect();
        let cuts = [Fault::Partition, Fault::OneWay, Fault::IsolateLeader];
        if faults.iter().any(|(fault, _)| cuts.contains(fault)) {
            faults.push((Fault::HealNetwork, 6));
        }
        let drawn = Self {
            voters,
            spares: random.of(&[0, 1, 2, 2]),
            witness: voters >= 3 && random.percent(15),
            loss: random.of(&[0, 0, 2, 10, 25]),
            duplication: random.of(&[0, 0, 5, 20]),
            stragglers: random.of(&[0, 0, 5, 30]),
            delay_max_ms: random.of(&[2, 5, 20, 60, 200]),
            election_ms: random.of(&[500, 500, 500, 200]),
            drift: clock,
            lease_drift: tolerated,
            clients: random.of(&[1, 3, 4, 6]),
            reads: random.of(&[10, 40, 70]),
            think_max_ms: random.of(&[5, 40, 150]),
            apply_max_ms: random.of(&[0, 0, 0, 30, 200]),
            turns: random.percent(40),
            append_entries_max: random.of(&[1, 3, 100]),
            inflight_messages_max: random.of(&[1, 2, 8]),
            inflight_bytes_max: random.of(&[200, 2_000, 1 << 20]),
            log_entries_max: 60,
            log_entries_kept: 20,
            priorities: random.percent(20),
            faults,
            fault_pause_ms: random.of(&[50, 200, 800]),
            fault_period_ms: random.of(&[4_000, 8_000, 12_000]),
            mistakes_max: 0,
        };
        match seed % 4 {
            1 => drawn.with_elections(&mut random),
            2 => drawn.with_changes(&mut random),
            3 => drawn.with_leases(&mut random),
            _ => drawn,
        }
    }

    /// Replaces leaders before their entries are committed, as in figure 8.
    fn with_elections(mut self, random: &mut Random) -> Self {
        (self.voters, self.spares, self.witness) = (random.of(&[2, 3, 3, 5]), 0, false);
        (self.election_ms, self.stragglers, self.append_entries_max) = (200, random.of(&[5, 150]), 1);
        (self.clients, self.think_max_ms, self.fault_pause_ms) = (4, 15, random.of(&[100, 300]));
        self.fault_period_ms = 6_000;
        self.faults = vec![
            (Fault::CrashLeader, 6),
            (Fault::IsolateLeader, 4),
            (Fault::OneWay, 2),
            (Fault::Crash, 3),
            (Fault::HealNetwork, 7),
            (Fault::SlowDisk, random.below(3)),
            (Fault::Compact, random.below(3)),
        ];
        self
    }

    /// Changes members and leaders at the same time.
    fn with_changes(mut self, random: &mut Random) -> Self {
        (self.voters, self.spares) = (random.of(&[1, 2, 3, 3, 5]), 2);
        self.witness &= self.voters >= 3;
        self.fault_period_ms = 5_000;
        (self.election_ms, self.fault_pause_ms) = (random.of(&[200, 500]), random.of(&[50, 150]));
        self.faults = vec![
            (Fault::Members, 8),
            (Fault::CrashLeader, 2),
            (Fault::Crash, 2),
            (Fault::Partition, 3),
            (Fault::OneWay, random.below(3)),
            (Fault::HealNetwork, 6),
            (Fault::Transfer, 2),
            (Fault::Wipe, random.below(3)),
            (Fault::Compact, random.below(4)),
        ];
        self
    }

    /// Sends reads to leaders that were replaced.
    fn with_leases(mut self, random: &mut Random) -> Self {
        (self.drift, self.lease_drift) = (9, 10);
        (self.clients, self.reads, self.think_max_ms, self.apply_max_ms) = (5, 70, 20, 0);
        self.fault_period_ms = 5_000;
        (self.loss, self.delay_max_ms, self.fault_pause_ms) = (0, random.of(&[2, 20]), 400);
        self.faults = vec![
            (Fault::PauseLeader, 6),
            (Fault::IsolateLeader, 4),
            (Fault::Transfer, 2),
            (Fault::HealNetwork, 6),
            (Fault::Damage, random.below(3)),
        ];
        self
    }

    /// Adds operators' mistakes to the plan of this seed, each one or not.
    #[must_use]
    pub fn with_mistakes(mut self, seed: u64) -> Self {
        let mut random = Random::new(seed, 3);
        // These faults rely on a quorum of disks that no operator changes.
        self.faults.retain(|(fault, _)| !matches!(fault, Fault::Damage | Fault::Wipe));
        self.mistakes_max = random.of(&[1, 2, 2, 4]);
        let mut mistakes: Vec<_> = MISTAKES.iter().copied().filter(|_| random.percent(35)).collect();
        match seed / 4 % 4 {
            1 => self.with_one_that_becomes_three(&mut random, &mut mistakes),
            2 => self.with_replacements(&mut random, &mut mistakes),
            _ => {}
        }
        if mistakes.iter().any(|(fault, _)| matches!(fault, Fault::RestoreCopy | Fault::PutBackSeveral)) {
            self.faults.push((Fault::CopyDisks, 3));
        }
        self.faults.append(&mut mistakes);
        self
    }

    /// Grows a cluster of one to three members.
    fn with_one_that_becomes_three(&mut self, random: &mut Random, mistakes: &mut Vec<(Fault, u64)>) {
        (self.voters, self.spares, self.witness) = (1, 2, false);
        let mistake = random.of(&[Fault::OtherFirstConfiguration, Fault::Replace, Fault::RestoreCopy]);
        mistakes.retain(|(fault, _)| *fault != mistake);
        mistakes.push((mistake, 4));
        self.faults.retain(|(fault, _)| *fault != Fault::CrashLeader);
        self.faults.push((Fault::CrashLeader, 3));
    }

    /// Replaces members under the same id with stable leaders, while messages take seconds.
    fn with_replacements(&mut self, random: &mut Random, mistakes: &mut Vec<(Fault, u64)>) {
        (self.voters, self.witness, self.loss) = (random.of(&[3, 3, 5]), false, 0);
        (self.stragglers, self.clients, self.think_max_ms) = (random.of(&[30, 150]), 4, 15);
        (self.fault_period_ms, self.fault_pause_ms) = (8_000, random.of(&[200, 800]));
        *mistakes = vec![(random.of(&[Fault::Replace, Fault::ReplaceInOneChange]), 6)];
        self.mistakes_max = 4;
        self.faults = vec![
            (Fault::CrashLeader, random.below(3)),
            (Fault::IsolateLeader, random.below(2)),
            (Fault::OneWay, random.below(2)),
            (Fault::Pause, 1),
            (Fault::SlowDisk, 2),
            (Fault::HealNetwork, 5),
            (Fault::Compact, random.below(3)),
        ];
    }

    /// Returns the plan of the other cluster, which has no faults of its own.
    pub(crate) fn other_cluster(&self) -> Self {
        Self { faults: Vec::new(), fault_pause_ms: 1_000, loss: 0, witness: false, ..self.clone() }
    }

    pub(crate) fn has(&self, fault: Fault) -> bool {
        self.faults.iter().any(|(known, _)| *known == fault)
    }

    /// Whether operators make mistakes.
    pub(crate) fn has_mistakes(&self) -> bool {
        self.mistakes_max > 0
    }

    /// Shortens the logs, so that every lagging node is sent a snapshot.
    pub(crate) fn with_short_logs(self) -> Self {
        Self { log_entries_max: 15, log_entries_kept: 3, ..self }
    }

    /// Draws the next fault.
    pub(crate) fn fault(&self, random: &mut Random) -> Option<Fault> {
        let mut at = random.below(self.faults.iter().map(|(_, weight)| weight).sum());
        self.faults.iter().find_map(|(fault, weight)| {
            if at < *weight {
                return Some(*fault);
            }
            at -= weight;
            None
        })
    }
}
