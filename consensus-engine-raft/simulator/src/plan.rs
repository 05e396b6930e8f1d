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
