//! Bugs that Raft implementations shipped, to be switched on: what shows that the tests would find them.
//!
//! In a test build with the feature `bugs` one of them can be [switched on](switch_on) at run time, for the whole process.
//! In a build without debug assertions - every release - [`is_on`] is constantly `false`, and nothing of them is left
//! (`scripts/no-bugs` looks into the binaries). The list is that of `docs/bugs.md`, which says where each was seen.

/// One bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
#[allow(clippy::upper_case_acronyms, reason = "names of the list")]
pub enum Bug {
    /// A vote reply leaves before the vote is durable.
    E1 = 1,
    /// Term and vote are persisted in two separate writes.
    E2,
    /// Step-down within the same term clears the vote.
    E3,
    /// A second grant in one term.
    E4,
    /// Vote replies of a stale term are counted.
    E6,
    /// A duplicated grant is counted twice.
    E7,
    /// The up-to-date check goes by index alone.
    E8,
    /// A higher term in a response is ignored.
    E10,
    /// An entry is stamped with a term that the node does not lead.
    E11,
    /// A restarted learner comes back as a voter.
    E12,
    /// A candidate asks for votes while its term and entries are still being persisted.
    E13,
    /// No pre-vote: who was cut off comes back with an inflated term.
    P1,
    /// A rejected pre-vote's higher term is not adopted.
    P2,
    /// A pre-candidate keeps old votes and a stale leader.
    P3,
    /// A leader that was once heard is taken for alive for ever.
    P5,
    /// The election timer is not refreshed on a rejected append.
    P6,
    /// A candidate sends heartbeats.
    P8,
    /// A leader cut from its quorum never steps down.
    P9,
    /// An entry of an earlier term is committed by counting replicas.
    C1,
    /// A follower's commit index passes what the leader vouched for.
    C3,
    /// A probe hint is stored as matched.
    C4,
    /// A follower acknowledges its own last index.
    C6,
    /// An acknowledgement of an earlier term counts.
    C7,
    /// The quorum scan loses its ordering.
    C9,
    /// The majority is off by one for even sizes.
    C10,
    /// Learners count for commitment.
    C11,
    /// A follower truncates without a conflict.
    C12,
    /// A purged prev is treated as a conflict.
    C13,
    /// A missing entry's term 0 matches term 0.
    C15,
    /// The next index falls to matched or below.
    C16,
    /// The conflict search never converges.
    C17,
    /// The entry cache is not truncated on overwrite.
    C18,
    /// The leader counts its own unflushed entry.
    C20,
    /// A single voter applies and acknowledges before persisting.
    C21,
    /// An I/O completion is discarded if more was appended meanwhile.
    C22,
    /// The in-flight byte counter leaks.
    C24,
    /// A ReadIndex is served before an entry of the current term is committed.
    R1,
    /// The index checked differs from the index returned.
    R3,
    /// A lease lasts longer than the voters' patience.
    R4,
    /// The lease survives a leadership transfer.
    R5,
    /// A read is served before applied reaches the read index.
    R7,
    /// The read quorum is a majority less one.
    R8,
    /// A refusal of an earlier term's append answers a read round of a later term.
    R9,
    /// A broken connection ends the patience that a lease counts on.
    R10,
    /// A change without a committed entry in the current term.
    M1,
    /// A joint commit checks one configuration only.
    M2,
    /// Leaves the joint configuration before it is committed.
    M3,
    /// A joint configuration is never left after a leader change.
    M4,
    /// A change does not take effect at append on followers.
    M5,
    /// An uncommitted change is not rolled back on truncation.
    M6,
    /// A snapshot carries the wrong configuration.
    M8,
    /// A restart forgets an appended, uncommitted configuration.
    M9,
    /// A second change is admitted while one is pending.
    M10,
    /// A removed leader goes on leading.
    M11,
    /// A re-added node removes itself on replay.
    M12,
    /// A wiped voter votes again under its old id.
    M13,
    /// A conflicting entry at the snapshot's index is kept.
    S1,
    /// An older snapshot is installed over newer state.
    S3,
    /// No append is accepted after an install.
    S4,
    /// A leader whose log is purged never sends a snapshot.
    S5,
    /// The log is removed before the state that covers it is durable.
    S6,
    /// A chunk with an offset starts a new transfer.
    S7,
    /// The session table is left out of the snapshot.
    S9,
    /// The applied index is not atomic with the state.
    D1,
    /// A failed write is retried as if it could succeed.
    D2,
    /// Acknowledged before it is durable.
    D3,
    /// Damage in mid-log is taken for a torn tail.
    D4,
    /// A full disk corrupts the log.
    D6,
    /// Applied is advanced before apply finished.
    D8,
    /// A node whose log was cut votes by what is left of it.
    W1,
    /// A node whose log was cut stands for election.
    W2,
    /// The loss is forgotten with the first entry that comes.
    W3,
    /// The transfer flag is never cleared.
    T1,
    /// TimeoutNow is sent before the target has caught up.
    T2,
    /// "certainly not applied" is said of an entry that may yet commit.
    K1,
    /// A repeated command is executed again.
    K2,
    /// Sessions are forgotten at a restart.
    K3,
}

/// All of them, with what they do.
pub const ALL: &[(Bug, &str)] = &[
    (Bug::E1, "a vote reply leaves before the vote is durable"),
    (Bug::E2, "term and vote are persisted in two separate writes"),
    (Bug::E3, "step-down within the same term clears the vote"),
    (Bug::E4, "a second grant in one term"),
    (Bug::E6, "vote replies of a stale term are counted"),
    (Bug::E7, "a duplicated grant is counted twice"),
    (Bug::E8, "the up-to-date check goes by index alone"),
    (Bug::E10, "a higher term in a response is ignored"),
    (Bug::E11, "an entry is stamped with a term that the node does not lead"),
    (Bug::E12, "a restarted learner comes back as a voter"),
    (Bug::E13, "a candidate asks for votes while its term and entries are still being persisted"),
    (Bug::P1, "no pre-vote: who was cut off comes back with an inflated term"),
    (Bug::P2, "a rejected pre-vote's higher term is not adopted"),
    (Bug::P3, "a pre-candidate keeps old votes and a stale leader"),
    (Bug::P5, "a leader that was once heard is taken for alive for ever"),
    (Bug::P6, "the election timer is not refreshed on a rejected append"),
    (Bug::P8, "a candidate sends heartbeats"),
    (Bug::P9, "a leader cut from its quorum never steps down"),
    (Bug::C1, "an entry of an earlier term is committed by counting replicas"),
    (Bug::C3, "a follower's commit index passes what the leader vouched for"),
    (Bug::C4, "a probe hint is stored as matched"),
    (Bug::C6, "a follower acknowledges its own last index"),
    (Bug::C7, "an acknowledgement of an earlier term counts"),
    (Bug::C9, "the quorum scan loses its ordering"),
    (Bug::C10, "the majority is off by one for even sizes"),
    (Bug::C11, "learners count for commitment"),
    (Bug::C12, "a follower truncates without a conflict"),
    (Bug::C13, "a purged prev is treated as a conflict"),
    (Bug::C15, "a missing entry's term 0 matches term 0"),
    (Bug::C16, "the next index falls to matched or below"),
    (Bug::C17, "the conflict search never converges"),
    (Bug::C18, "the entry cache is not truncated on overwrite"),
    (Bug::C20, "the leader counts its own unflushed entry"),
    (Bug::C21, "a single voter applies and acknowledges before persisting"),
    (Bug::C22, "an I/O completion is discarded if more was appended meanwhile"),
    (Bug::C24, "the in-flight byte counter leaks"),
    (Bug::R1, "a ReadIndex is served before an entry of the current term is committed"),
    (Bug::R3, "the index checked differs from the index returned"),
    (Bug::R4, "a lease lasts longer than the voters' patience"),
    (Bug::R5, "the lease survives a leadership transfer"),
    (Bug::R7, "a read is served before applied reaches the read index"),
    (Bug::R8, "the read quorum is a majority less one"),
    (Bug::R9, "a refusal of an earlier term's append answers a read round of a later term"),
    (Bug::R10, "a broken connection ends the patience that a lease counts on"),
    (Bug::M1, "a change without a committed entry in the current term"),
    (Bug::M2, "a joint commit checks one configuration only"),
    (Bug::M3, "leaves the joint configuration before it is committed"),
    (Bug::M4, "a joint configuration is never left after a leader change"),
    (Bug::M5, "a change does not take effect at append on followers"),
    (Bug::M6, "an uncommitted change is not rolled back on truncation"),
    (Bug::M8, "a snapshot carries the wrong configuration"),
    (Bug::M9, "a restart forgets an appended, uncommitted configuration"),
    (Bug::M10, "a second change is admitted while one is pending"),
    (Bug::M11, "a removed leader goes on leading"),
    (Bug::M12, "a re-added node removes itself on replay"),
    (Bug::M13, "a wiped voter votes again under its old id"),
    (Bug::S1, "a conflicting entry at the snapshot's index is kept"),
    (Bug::S3, "an older snapshot is installed over newer state"),
    (Bug::S4, "no append is accepted after an install"),
    (Bug::S5, "a leader whose log is purged never sends a snapshot"),
    (Bug::S6, "the log is removed before the state that covers it is durable"),
    (Bug::S7, "a chunk with an offset starts a new transfer"),
    (Bug::S9, "the session table is left out of the snapshot"),
    (Bug::D1, "the applied index is not atomic with the state"),
    (Bug::D2, "a failed write is retried as if it could succeed"),
    (Bug::D3, "acknowledged before it is durable"),
    (Bug::D4, "damage in mid-log is taken for a torn tail"),
    (Bug::D6, "a full disk corrupts the log"),
    (Bug::D8, "applied is advanced before apply finished"),
    (Bug::W1, "a node whose log was cut votes by what is left of it"),
    (Bug::W2, "a node whose log was cut stands for election"),
    (Bug::W3, "a loss is forgotten with the first entry that comes"),
    (Bug::T1, "the transfer flag is never cleared"),
    (Bug::T2, "TimeoutNow is sent before the target has caught up"),
    (Bug::K1, "\"certainly not applied\" is said of an entry that may yet commit"),
    (Bug::K2, "a repeated command is executed again"),
    (Bug::K3, "sessions are forgotten at a restart"),
];

#[cfg(all(feature = "bugs", debug_assertions))]
static ON: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(UNSET);
/// Nobody has said yet; the environment variable `CONSENSUS_BUG` does.
#[cfg(all(feature = "bugs", debug_assertions))]
const UNSET: u8 = u8::MAX;

/// Whether the code at hand is to make this mistake.
#[cfg(all(feature = "bugs", debug_assertions))]
#[inline]
#[must_use]
pub fn is_on(bug: Bug) -> bool {
    let on = ON.load(std::sync::atomic::Ordering::Relaxed);
    if on == UNSET {
        switch_on(std::env::var("CONSENSUS_BUG").ok().and_then(|name| named(&name)));
        return is_on(bug);
    }
    on == bug as u8
}

/// Whether the code at hand is to make this mistake: never, in this build.
#[cfg(not(all(feature = "bugs", debug_assertions)))]
#[inline(always)]
#[must_use]
pub const fn is_on(_: Bug) -> bool {
    false
}

/// Switches one on, or none; `false` if this build has none of them.
#[cfg(all(feature = "bugs", debug_assertions))]
pub fn switch_on(bug: Option<Bug>) -> bool {
    ON.store(bug.map_or(0, |bug| bug as u8), std::sync::atomic::Ordering::Relaxed);
    true
}

/// Switches one on, or none; `false` if this build has none of them.
#[cfg(not(all(feature = "bugs", debug_assertions)))]
pub fn switch_on(bug: Option<Bug>) -> bool {
    bug.is_none()
}

/// The bug of this name, such as `C1`.
#[must_use]
pub fn named(name: &str) -> Option<Bug> {
    ALL.iter().map(|(bug, _)| *bug).find(|bug| format!("{bug:?}") == name)
}
