//! Scenarios for the model checker.

use consensus_core::{Member, MemberChange, MemberKind, NodeId};

/// A cluster, and limits for the events in it.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Name on the command line.
    pub name: &'static str,
    /// Purpose, in words.
    pub text: &'static str,
    /// Nodes, numbered from 0.
    pub nodes: u64,
    /// Number of voters at the start.
    pub voters: u64,
    /// Groups of nodes with equal initial states.
    pub symmetric: &'static [&'static [u8]],
    /// Changes that are requested from leaders, in this order, each once.
    pub changes: Vec<Vec<MemberChange>>,
    /// See [`Clocks`].
    pub clocks: Clocks,
    /// Leader at the start, with equal logs on all nodes; `None` starts before the first election.
    pub leader: Option<NodeId>,
    /// Initial log of each node, as terms of the entries after the first configuration, and the node's term.
    pub logs: &'static [(&'static [u64], u64)],
    /// Cut links, as (sender, receiver).
    pub cut: &'static [(u64, u64)],
    /// Whether all entries are lost in transit, so that only elections happen.
    pub loses_entries: bool,
    /// Maximum number of entries in one message.
    pub append_entries_max: usize,
    /// Limits for events.
    pub budget: Budget,
}

/// Behaviour of the clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clocks {
    /// Each clock advances independently; no leases.
    Own,
    /// All clocks follow a common time at their rate in percent, with leases for a drift of ten percent.
    Common(&'static [u32]),
}

/// Limits for events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Budget {
    /// Deadlines that pass (elections, heartbeats).
    pub ticks: u8,
    /// Highest term in which a node may campaign.
    pub terms: u8,
    /// Commands.
    pub proposals: u8,
    /// Crashes, each with a restart.
    pub crashes: u8,
    /// Messages delivered twice.
    pub repeats: u8,
    /// Changes of members.
    pub changes: u8,
    /// Reads.
    pub reads: u8,
    /// Compactions of a log.
    pub compactions: u8,
    /// Leadership transfers.
    pub transfers: u8,
    /// Steps of the common time.
    pub advances: u8,
    /// Connections to a leader that break.
    pub disconnects: u8,
}

impl Budget {
    /// Limits whose increase only allows more events.
    pub(crate) fn allowances(&self) -> [u8; 8] {
        let Self {
            ticks, proposals, crashes, repeats, compactions, transfers, advances, disconnects, ..
        } = *self;
        [ticks, proposals, crashes, repeats, compactions, transfers, advances, disconnects]
    }

    /// The other limits, which also number events or never change.
    pub(crate) fn others(&self) -> (u8, u8, u8) {
        (self.terms, self.changes, self.reads)
    }
}

fn set(id: u64, kind: MemberKind) -> MemberChange {
    MemberChange::Set(NodeId(id), Member::new(kind))
}

/// Returns the scenarios of `make states`, `make model-check` and the tests.
///
/// The first scenario of each kind is small enough to search all its states. Scenarios called "-more" have larger budgets and too
/// many states; they are searched breadth first up to a limit.
#[must_use]
pub fn scenarios() -> Vec<Scenario> {
    let base = Scenario {
        name: "",
        text: "",
        nodes: 3,
        voters: 3,
        symmetric: &[&[0, 1, 2]],
        changes: Vec::new(),
        clocks: Clocks::Own,
        leader: None,
        logs: &[],
        append_entries_max: 2,
        loses_entries: false,
        cut: &[],
        budget: Budget { terms: 2, ..Budget::default() },
    };
    let led = Scenario { symmetric: &[&[1, 2]], leader: Some(NodeId(0)), ..base.clone() };
    [elections(&base), logs(&base, &led), members(&led), reads(&led)].concat()
}

fn elections(base: &Scenario) -> Vec<Scenario> {
    vec![
        Scenario {
            name: "votes",
            text: "two candidates in one term, with crashes between any two effects",
            loses_entries: true,
            budget: Budget { ticks: 2, terms: 1, crashes: 2, ..base.budget },
            ..base.clone()
        },
        Scenario {
            name: "repeated-votes",
            text: "two candidates in one term, with a duplicated message",
            nodes: 4,
            voters: 4,
            symmetric: &[&[0, 1, 2, 3]],
            budget: Budget { ticks: 1, terms: 1, repeats: 1, ..base.budget },
            ..base.clone()
        },
        Scenario {
            name: "terms",
            text: "elections in three terms",
            loses_entries: true,
            budget: Budget { ticks: 3, terms: 3, ..base.budget },
            ..base.clone()
        },
    ]
}

fn logs(base: &Scenario, led: &Scenario) -> Vec<Scenario> {
    let successor = Scenario {
        name: "successor",
        text: "an entry in transit while another leader is elected",
        budget: Budget { ticks: 1, proposals: 1, crashes: 1, ..base.budget },
        ..led.clone()
    };
    // The figure needs two elections, because the node with the entry of term 2 has heard of term 3.
    let figure_8 = Scenario {
        name: "figure-8",
        text: "the logs of figure 8: an entry of an earlier term on a majority may still be replaced",
        symmetric: &[],
        logs: &[(&[1], 2), (&[], 2), (&[2], 3)],
        cut: &[(0, 2), (2, 0)],
        append_entries_max: 1,
        budget: Budget { ticks: 2, terms: 4, ..base.budget },
        ..base.clone()
    };
    let conflict = Scenario {
        name: "conflict",
        text: "an election with different logs of different lengths",
        symmetric: &[],
        logs: &[(&[1, 1], 2), (&[1, 2], 2), (&[1], 1)],
        append_entries_max: 1,
        budget: Budget { ticks: 1, terms: 3, crashes: 1, ..base.budget },
        ..base.clone()
    };
    let entries = Scenario {
        name: "entries",
        text: "two entries, and a crash",
        budget: Budget { terms: 1, proposals: 2, crashes: 1, ..base.budget },
        ..led.clone()
    };
    let snapshot = Scenario {
        name: "snapshot",
        text: "a snapshot for a follower behind the purged log, with a crash during its installation",
        budget: Budget { ticks: 1, terms: 1, proposals: 1, crashes: 1, compactions: 1, ..base.budget },
        ..led.clone()
    };
    vec![
        entries,
        successor.clone(),
        successor.more("successor-more", Budget { ticks: 2, crashes: 0, ..successor.budget }),
        figure_8.clone(),
        Scenario {
            logs: &[(&[1], 2), (&[], 2), (&[2], 2)],
            ..figure_8.more("figure-8-more", Budget { ticks: 3, ..figure_8.budget })
        },
        conflict.clone(),
        conflict.more("conflict-more", Budget { ticks: 2, crashes: 0, ..conflict.budget }),
        snapshot,
    ]
}

fn members(led: &Scenario) -> Vec<Scenario> {
    let voter = |id| set(id, MemberKind::Voter);
    let remove = |id| MemberChange::Remove(NodeId(id));
    let grow = Scenario {
        name: "grow",
        text: "2 -> 3 voters, and a crash",
        voters: 2,
        symmetric: &[],
        changes: vec![vec![voter(2)]],
        budget: Budget { terms: 1, changes: 1, crashes: 1, ..led.budget },
        ..led.clone()
    };
    let contended = Scenario {
        name: "grow-contended",
        text: "2 -> 3 voters, with another candidate",
        budget: Budget { ticks: 1, changes: 1, ..led.budget },
        ..grow.clone()
    };
    let replace = Scenario {
        name: "replace",
        text: "{0, 1} -> {1, 2} in one joint step, with another candidate",
        changes: vec![vec![remove(0), voter(2)]],
        ..contended.clone()
    };
    vec![
        grow.clone(),
        Scenario {
            name: "grow-more",
            text: "2 -> 3 -> 4 voters in single steps",
            nodes: 4,
            changes: vec![vec![voter(2)], vec![voter(3)]],
            budget: Budget { terms: 1, changes: 2, ..led.budget },
            ..grow
        },
        contended.clone(),
        contended.more("grow-contended-more", Budget { ticks: 2, ..contended.budget }),
        replace.clone(),
        Scenario {
            name: "replace-more",
            text: "{0, 1, 2} -> {2, 3, 4} in one joint step",
            nodes: 5,
            voters: 3,
            symmetric: &[&[3, 4]],
            changes: vec![vec![remove(0), remove(1), voter(3), voter(4)]],
            ..replace
        },
    ]
}

fn reads(led: &Scenario) -> Vec<Scenario> {
    let read = Scenario {
        name: "read",
        text: "ReadIndex on leaders and followers, across a change of leaders",
        budget: Budget { ticks: 1, reads: 1, ..led.budget },
        ..led.clone()
    };
    let lease = Scenario {
        name: "lease",
        text: "a lease read on an isolated leader with another leader, with clock drift within the limit",
        clocks: Clocks::Common(&[100, 110, 110]),
        cut: &[(0, 1), (0, 2), (1, 0), (2, 0)],
        budget: Budget { ticks: 1, proposals: 1, reads: 1, advances: 8, ..led.budget },
        ..led.clone()
    };
    let disconnected = Scenario {
        name: "lease-disconnected",
        text: "connections to a running leader with a lease break",
        symmetric: &[],
        cut: &[(0, 1), (0, 2)],
        budget: Budget { disconnects: 2, advances: 3, ..lease.budget },
        ..lease.clone()
    };
    let transfer = Scenario {
        name: "transfer",
        text: "a leadership transfer during a lease",
        clocks: Clocks::Common(&[100, 110, 110]),
        budget: Budget { ticks: 1, reads: 1, transfers: 1, advances: 1, ..led.budget },
        ..led.clone()
    };
    vec![
        read.clone(),
        read.more("read-more", Budget { ticks: 2, proposals: 1, ..read.budget }),
        read.more("read-disconnected", Budget { disconnects: 2, ..read.budget }),
        lease,
        disconnected,
        transfer.clone(),
        transfer.more("transfer-more", Budget { proposals: 1, ..transfer.budget }),
    ]
}

impl Scenario {
    /// Returns the scenario with a larger budget.
    fn more(&self, name: &'static str, budget: Budget) -> Self {
        Self { name, budget, ..self.clone() }
    }
}
