//! What a seed does to its cluster. Each seed has some kinds of trouble and not others (swarm testing, Groce et al. 2012):
//! with all of them at once the rare combinations never come about.

use crate::random::Random;

/// Kinds of trouble, and of what else is asked of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trouble {
    /// A node stops between any two effects, and comes back.
    Crash,
    /// The leader does.
    CrashLeader,
    /// The leader stands still for about as long as the others are patient with it.
    PauseLeader,
    /// All stop at once.
    CrashAll,
    /// Some are cut from the others, in both directions.
    Partition,
    /// Some messages pass in one direction only.
    OneWay,
    /// The leader alone is cut off, with the clients that keep to it.
    IsolateLeader,
    /// All links work again.
    Mend,
    /// A process stands still for a while, and its clock does not.
    Pause,
    /// A disk takes long for each write.
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
    /// Members change.
    Members,
    /// The lead is handed over.
    Transfer,
    /// Some nodes lose their connection to the leader, which is there all the same.
    Disconnect,
    /// Operators copy the data directories of all nodes, as backups.
    CopyDisks,
    /// An operator puts an old copy of a node's data directory back.
    PutBack,
    /// An operator puts old copies of several nodes' data directories back.
    PutBackSeveral,
    /// An operator empties a node's disk and starts it by its usual command.
    WipeAndStart,
    /// An operator empties a node's disk and starts it with `--join`.
    WipeAndJoin,
    /// An operator removes a member, empties its disk, and adds it under the same id, in several changes.
    Replace,
    /// An operator does so in one change.
    ReplaceInOneChange,
    /// An operator starts nodes that have no log yet with a first configuration of all nodes, beside a cluster that exists.
    OtherFirstConfiguration,
    /// A write does not return for a long time.
    StallDisk,
    /// The state machine does not return from an apply for a long time.
    StallApply,
    /// A node cannot take snapshots for a while.
    NoSnapshot,
    /// A node has no room for snapshots for a while.
    NoRoomForSnapshot,
    /// Nodes of another cluster, with the same ids, are taken for those of this one for a while.
    Meet,
}

/// All, with how often each comes up in a run that has it.
const TROUBLES: &[(Trouble, u64)] = &[
    (Trouble::Crash, 4),
    (Trouble::CrashLeader, 4),
    (Trouble::PauseLeader, 3),
    (Trouble::CrashAll, 1),
    (Trouble::Partition, 4),
    (Trouble::OneWay, 3),
    (Trouble::IsolateLeader, 3),
    (Trouble::Mend, 0),
    (Trouble::Pause, 3),
    (Trouble::SlowDisk, 2),
    (Trouble::FullDisk, 1),
    (Trouble::FailedWrite, 1),
    (Trouble::Damage, 2),
    (Trouble::Wipe, 1),
    (Trouble::Compact, 8),
    (Trouble::Members, 4),
    (Trouble::Transfer, 3),
    (Trouble::Disconnect, 3),
];

/// Operators' mistakes, and disks and machines that hang: how often each comes up in a run that has it.
const MISTAKES: &[(Trouble, u64)] = &[
    (Trouble::PutBack, 2),
    (Trouble::PutBackSeveral, 1),
    (Trouble::WipeAndStart, 2),
    (Trouble::WipeAndJoin, 2),
    (Trouble::Replace, 3),
    (Trouble::ReplaceInOneChange, 2),
    (Trouble::OtherFirstConfiguration, 2),
    (Trouble::StallDisk, 1),
    (Trouble::StallApply, 1),
    (Trouble::NoSnapshot, 1),
    (Trouble::NoRoomForSnapshot, 1),
    (Trouble::Meet, 2),
];

/// What a run is like.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Voters in the beginning.
    pub voters: u64,
    /// Nodes that could join.
    pub spares: u64,
    /// One of the voters is a witness.
    pub witness: bool,
    /// Percent of messages that are lost, and that come twice.
    pub loss: u64,
    /// See `loss`.
    pub duplication: u64,
    /// Of a thousand messages so many take seconds.
    pub stragglers: u64,
    /// Longest time that a message takes, in milliseconds.
    pub delay_max_ms: u64,
    /// Election timeout in milliseconds; a heartbeat is a fifth of it.
    pub election_ms: u64,
    /// By how much the clocks may differ, in percent; leases are on if it is not more than `lease_drift`.
    pub drift: u64,
    /// The bound that the nodes are told; 0: no leases.
    pub lease_drift: u32,
    /// Clients that keep one request in flight each.
    pub clients: u64,
    /// Percent of requests that are reads.
    pub reads: u64,
    /// Longest pause of a client between two requests, in milliseconds.
    pub think_max_ms: u64,
    /// Longest time that applying takes, in milliseconds.
    pub apply_max_ms: u64,
    /// Several events are taken in one turn, as a driver does under load.
    pub turns: bool,
    /// Most entries in one message.
    pub append_entries_max: usize,
    /// Most messages in flight to a follower.
    pub inflight_messages_max: usize,
    /// Most bytes in flight to a follower.
    pub inflight_bytes_max: u64,
    /// Longer logs are compacted.
    pub log_entries_max: usize,
    /// Down to so many entries.
    pub log_entries_kept: u64,
    /// Some nodes are to be preferred as leaders.
    pub priorities: bool,
    /// What may happen, with how often.
    pub troubles: Vec<(Trouble, u64)>,
    /// Longest pause between two troubles, in milliseconds.
    pub trouble_pause_ms: u64,
    /// For how long, in milliseconds.
    pub trouble_ms: u64,
    /// Operators make mistakes: at most so many times in the run something is done to a disk.
    pub mistakes_max: u64,
}

impl Plan {
    /// Of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(seed, 1);
        let voters = random.of(&[3, 3, 3, 3, 5, 5, 4, 2, 1]);
        let (clock, tolerated) = random.of(&[(0, 0), (0, 10), (9, 10), (9, 10), (9, 10), (40, 0)]);
        let mut troubles: Vec<_> = TROUBLES.iter().copied().filter(|_| random.percent(50)).collect();
        let cuts = [Trouble::Partition, Trouble::OneWay, Trouble::IsolateLeader];
        if troubles.iter().any(|(trouble, _)| cuts.contains(trouble)) {
            troubles.push((Trouble::Mend, 6));
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
            troubles,
            trouble_pause_ms: random.of(&[50, 200, 800]),
            trouble_ms: random.of(&[4_000, 8_000, 12_000]),
            mistakes_max: 0,
        };
        match seed % 4 {
            1 => drawn.with_elections(&mut random),
            2 => drawn.with_changes(&mut random),
            3 => drawn.with_leases(&mut random),
            _ => drawn,
        }
    }

    /// Leaders come and go before what they began is done: where figure 8 is.
    fn with_elections(mut self, random: &mut Random) -> Self {
        (self.voters, self.spares, self.witness) = (random.of(&[2, 3, 3, 5]), 0, false);
        (self.election_ms, self.stragglers, self.append_entries_max) = (200, random.of(&[5, 150]), 1);
        (self.clients, self.think_max_ms, self.trouble_pause_ms) = (4, 15, random.of(&[100, 300]));
        self.trouble_ms = 6_000;
        self.troubles = vec![
            (Trouble::CrashLeader, 6),
            (Trouble::IsolateLeader, 4),
            (Trouble::OneWay, 2),
            (Trouble::Crash, 3),
            (Trouble::Mend, 7),
            (Trouble::SlowDisk, random.below(3)),
            (Trouble::Compact, random.below(3)),
        ];
        self
    }

    /// Members change under leaders that change.
    fn with_changes(mut self, random: &mut Random) -> Self {
        (self.voters, self.spares) = (random.of(&[1, 2, 3, 3, 5]), 2);
        self.witness &= self.voters >= 3;
        self.trouble_ms = 5_000;
        (self.election_ms, self.trouble_pause_ms) = (random.of(&[200, 500]), random.of(&[50, 150]));
        self.troubles = vec![
            (Trouble::Members, 8),
            (Trouble::CrashLeader, 2),
            (Trouble::Crash, 2),
            (Trouble::Partition, 3),
            (Trouble::OneWay, random.below(3)),
            (Trouble::Mend, 6),
            (Trouble::Transfer, 2),
            (Trouble::Wipe, random.below(3)),
            (Trouble::Compact, random.below(4)),
        ];
        self
    }

    /// Leaders that should know that they lead no longer are asked.
    fn with_leases(mut self, random: &mut Random) -> Self {
        (self.drift, self.lease_drift) = (9, 10);
        (self.clients, self.reads, self.think_max_ms, self.apply_max_ms) = (5, 70, 20, 0);
        self.trouble_ms = 5_000;
        (self.loss, self.delay_max_ms, self.trouble_pause_ms) = (0, random.of(&[2, 20]), 400);
        self.troubles = vec![
            (Trouble::PauseLeader, 6),
            (Trouble::IsolateLeader, 4),
            (Trouble::Transfer, 2),
            (Trouble::Mend, 6),
            (Trouble::Damage, random.below(3)),
        ];
        self
    }

    /// Adds operators' mistakes to the plan of this seed, each with its own switch.
    #[must_use]
    pub fn with_mistakes(mut self, seed: u64) -> Self {
        let mut random = Random::new(seed, 3);
        // These count on a quorum of disks that nobody else touches.
        self.troubles.retain(|(trouble, _)| !matches!(trouble, Trouble::Damage | Trouble::Wipe));
        self.mistakes_max = random.of(&[1, 2, 2, 4]);
        let mut mistakes: Vec<_> = MISTAKES.iter().copied().filter(|_| random.percent(35)).collect();
        match seed / 4 % 4 {
            1 => self.with_one_that_becomes_three(&mut random, &mut mistakes),
            2 => self.with_replacements(&mut random, &mut mistakes),
            _ => {}
        }
        if mistakes.iter().any(|(trouble, _)| matches!(trouble, Trouble::PutBack | Trouble::PutBackSeveral)) {
            self.troubles.push((Trouble::CopyDisks, 3));
        }
        self.troubles.append(&mut mistakes);
        self
    }

    /// A cluster of one grows, in one way or another.
    fn with_one_that_becomes_three(&mut self, random: &mut Random, mistakes: &mut Vec<(Trouble, u64)>) {
        (self.voters, self.spares, self.witness) = (1, 2, false);
        let mistake = random.of(&[Trouble::OtherFirstConfiguration, Trouble::Replace, Trouble::PutBack]);
        mistakes.retain(|(trouble, _)| *trouble != mistake);
        mistakes.push((mistake, 4));
        self.troubles.retain(|(trouble, _)| *trouble != Trouble::CrashLeader);
        self.troubles.push((Trouble::CrashLeader, 3));
    }

    /// Members are replaced under the same id by leaders that stay, while messages take seconds.
    fn with_replacements(&mut self, random: &mut Random, mistakes: &mut Vec<(Trouble, u64)>) {
        (self.voters, self.witness, self.loss) = (random.of(&[3, 3, 5]), false, 0);
        (self.stragglers, self.clients, self.think_max_ms) = (random.of(&[30, 150]), 4, 15);
        (self.trouble_ms, self.trouble_pause_ms) = (8_000, random.of(&[200, 800]));
        *mistakes = vec![(random.of(&[Trouble::Replace, Trouble::ReplaceInOneChange]), 6)];
        self.mistakes_max = 4;
        self.troubles = vec![
            (Trouble::CrashLeader, random.below(3)),
            (Trouble::IsolateLeader, random.below(2)),
            (Trouble::OneWay, random.below(2)),
            (Trouble::Pause, 1),
            (Trouble::SlowDisk, 2),
            (Trouble::Mend, 5),
            (Trouble::Compact, random.below(3)),
        ];
    }

    /// What another cluster is like that this one meets: left alone otherwise.
    pub(crate) fn other_cluster(&self) -> Self {
        Self { troubles: Vec::new(), trouble_pause_ms: 1_000, loss: 0, witness: false, ..self.clone() }
    }

    pub(crate) fn has(&self, trouble: Trouble) -> bool {
        self.troubles.iter().any(|(known, _)| *known == trouble)
    }

    /// Whether operators make mistakes.
    pub(crate) fn has_mistakes(&self) -> bool {
        self.mistakes_max > 0
    }

    /// Whoever falls behind is sent a snapshot.
    pub(crate) fn with_short_logs(self) -> Self {
        Self { log_entries_max: 15, log_entries_kept: 3, ..self }
    }

    /// The next trouble.
    pub(crate) fn trouble(&self, random: &mut Random) -> Option<Trouble> {
        let mut at = random.below(self.troubles.iter().map(|(_, weight)| weight).sum());
        self.troubles.iter().find_map(|(trouble, weight)| {
            if at < *weight {
                return Some(*trouble);
            }
            at -= weight;
            None
        })
    }
}
