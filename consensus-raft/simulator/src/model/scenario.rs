//! What is searched.

use consensus_core::{Member, MemberChange, MemberKind, NodeId};

/// A cluster, and how often what may happen to it.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it is for.
    pub text: &'static str,
    /// Nodes, numbered from 0.
    pub nodes: u64,
    /// How many of them vote in the beginning.
    pub voters: u64,
    /// Groups of nodes that begin alike.
    pub symmetric: &'static [&'static [u8]],
    /// What is asked of leaders, in this order; each once.
    pub changes: Vec<Vec<MemberChange>>,
    /// See [`Clocks`].
    pub clocks: Clocks,
    /// Who leads in the beginning, with all logs alike; `None`: nobody, at the very beginning.
    pub leader: Option<NodeId>,
    /// Terms of the entries after the first configuration that each node has in the beginning, and its own term.
    pub logs: &'static [(&'static [u64], u64)],
    /// From whom to whom nothing comes through.
    pub cut: &'static [(u64, u64)],
    /// All entries are lost on their way: what is left is elections.
    pub loses_entries: bool,
    /// Most entries in one message.
    pub append_entries_max: usize,
    /// How often what may happen.
    pub budget: Budget,
}

/// How clocks go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clocks {
    /// Each as it likes; no leases.
    Own,
    /// By a common time, each at its rate in percent, with leases for a drift of ten percent.
    Common(&'static [u32]),
}

/// How often what may happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Budget {
    /// Deadlines that pass: elections, heartbeats.
    pub ticks: u8,
    /// Highest term in which somebody may stand.
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
    /// Transfers of the lead.
    pub transfers: u8,
    /// Steps of the common time.
    pub advances: u8,
}

fn set(id: u64, kind: MemberKind) -> MemberChange {
    MemberChange::Set(NodeId(id), Member::new(kind))
}

/// Those that `make model-check` and the tests search.
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
        budget: Budget { ticks: 4, terms: 3, ..Budget::default() },
    };
    let voter = |id| set(id, MemberKind::Voter);
    let led = Scenario { symmetric: &[&[1, 2]], leader: Some(NodeId(0)), ..base.clone() };
    vec![
        Scenario {
            name: "votes",
            text: "two stand in one term, with a crash between any two effects",
            loses_entries: true,
            budget: Budget { ticks: 2, terms: 1, crashes: 1, ..Budget::default() },
            ..base.clone()
        },
        Scenario {
            name: "repeated-votes",
            text: "two stand in one term, with a message that comes twice",
            nodes: 4,
            voters: 4,
            symmetric: &[&[0, 1, 2, 3]],
            budget: Budget { ticks: 1, terms: 1, repeats: 1, ..Budget::default() },
            ..base.clone()
        },
        Scenario {
            name: "terms",
            text: "elections in three terms",
            loses_entries: true,
            budget: Budget { ticks: 3, terms: 3, ..Budget::default() },
            ..base.clone()
        },
        Scenario {
            name: "entries",
            text: "two entries, and a crash",
            budget: Budget { terms: 1, proposals: 2, crashes: 1, ..Budget::default() },
            ..led.clone()
        },
        Scenario {
            name: "successor",
            text: "an entry under way while another leader is elected",
            budget: Budget { ticks: 2, terms: 2, proposals: 1, ..Budget::default() },
            ..led.clone()
        },
        Scenario {
            name: "figure-8",
            text: "the logs of figure 8: an entry of an earlier term on a majority may yet be replaced",
            symmetric: &[],
            logs: &[(&[1], 2), (&[], 2), (&[2], 2)],
            cut: &[(0, 2), (2, 0)],
            append_entries_max: 1,
            budget: Budget { ticks: 3, terms: 4, ..Budget::default() },
            ..base.clone()
        },
        Scenario {
            name: "conflict",
            text: "logs that differ, of different lengths, and a leader to be found",
            symmetric: &[],
            logs: &[(&[1, 1], 2), (&[1, 2], 2), (&[1], 1)],
            append_entries_max: 1,
            budget: Budget { ticks: 2, terms: 3, ..Budget::default() },
            ..base.clone()
        },
        Scenario {
            name: "grow",
            text: "2 -> 3 -> 4 voters in single steps",
            nodes: 4,
            voters: 2,
            symmetric: &[],
            changes: vec![vec![voter(2)], vec![voter(3)]],
            budget: Budget { ticks: 0, terms: 1, changes: 2, ..Budget::default() },
            ..led.clone()
        },
        Scenario {
            name: "grow-contended",
            text: "2 -> 3 voters, and somebody else stands",
            voters: 2,
            symmetric: &[],
            changes: vec![vec![voter(2)]],
            budget: Budget { ticks: 2, terms: 2, changes: 1, ..Budget::default() },
            ..led.clone()
        },
        Scenario {
            name: "joint",
            text: "{0, 1, 2} -> {2, 3, 4} in one joint step",
            nodes: 5,
            symmetric: &[&[3, 4]],
            changes: vec![vec![
                MemberChange::Remove(NodeId(0)),
                MemberChange::Remove(NodeId(1)),
                voter(3),
                voter(4),
            ]],
            budget: Budget { ticks: 1, terms: 2, changes: 1, ..Budget::default() },
            ..led.clone()
        },
        Scenario {
            name: "snapshot",
            text: "a follower whose log is gone, a snapshot, a crash in it",
            budget: Budget {
                ticks: 1,
                terms: 1,
                proposals: 1,
                crashes: 1,
                compactions: 1,
                ..Budget::default()
            },
            ..led.clone()
        },
        Scenario {
            name: "read",
            text: "ReadIndex on leaders and followers, over a change of leaders",
            budget: Budget { ticks: 2, terms: 2, proposals: 1, reads: 1, ..Budget::default() },
            ..led.clone()
        },
        Scenario {
            name: "lease",
            text: "a leader that is cut off, clocks that drift within the bound, another leader, a read by lease",
            clocks: Clocks::Common(&[100, 110, 110]),
            cut: &[(0, 1), (0, 2), (1, 0), (2, 0)],
            budget: Budget { ticks: 1, terms: 2, proposals: 1, reads: 1, advances: 8, ..Budget::default() },
            ..led.clone()
        },
        Scenario {
            name: "transfer",
            text: "the lead is handed over while a lease is held and an entry is under way",
            clocks: Clocks::Common(&[100, 110, 110]),
            budget: Budget {
                ticks: 1,
                terms: 2,
                proposals: 1,
                reads: 1,
                transfers: 1,
                advances: 1,
                ..Budget::default()
            },
            ..led
        },
    ]
}
