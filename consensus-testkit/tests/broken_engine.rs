//! The suite of `ConsensusEngine` rejects a cluster in memory with one defect at a time.

#[path = "broken_engine/cluster.rs"]
mod cluster;
mod common;
#[path = "broken_engine/engine.rs"]
mod engine;

use cluster::{Defect, start};
use common::assert_rejected;
use consensus_testkit::engine::{rules, run_suite};

#[test]
fn engine_without_defect_passes() {
    run(&[1, 2, 3, 5], Defect::None);
}

#[test]
fn each_rule_rejects_its_defects() {
    let order = "all nodes apply every command once, in the same order";
    let answer = "the result of a proposal has the position and the response of its command";
    let dropped = "a dropped proposal or read affects no other, and is applied at most once";
    let barrier = "a read after a barrier sees every command that was acknowledged before";
    let stale = "every node serves a stale read at once, from its applied state";
    let follower = "a node that is not leader names the leader, or forwards the proposal";
    let status = "the status describes its own node, and never goes backwards";
    let members = "changes of members take effect in one step, or the engine does not support them";
    let refused_members = "a refused change of members changes nothing";
    let compaction = "compaction of the log loses nothing, or the engine has no log";
    let transfer = "leadership is transferred, or the engine does not support it";
    let refused_transfer =
        "a transfer to a node that cannot lead, or from a node that is not leader, is refused";
    let shut_down = "an engine that is shut down reports it";
    let waiting = "every proposal during a shutdown gets a true result";
    let panic = "a panic of the state machine stops its engine, which reports the reason";
    let table = [
        (Defect::FollowersMissACommand, order),
        (Defect::FollowersSwapCommands, order),
        (Defect::AppliesTwice, order),
        (Defect::ReturnsWrongResponse, answer),
        (Defect::ReturnsWrongPosition, answer),
        (Defect::RefusesEmptyCommands, "a command may be any bytes, or empty"),
        (Defect::ProposesDroppedCommandAgain, dropped),
        (Defect::StopsAtDroppedProposal, dropped),
        (Defect::FollowersReadWithoutWaiting, barrier),
        (Defect::BarriersAtZero, barrier),
        (Defect::StaleReadsAtCommit, stale),
        (Defect::FollowersRefuseStaleReads, stale),
        (Defect::NamesNoLeader, follower),
        (Defect::AcknowledgesWithoutForwarding, follower),
        (Defect::RefusesAndProposes, "a refused proposal is not applied"),
        (Defect::StatusNeverChanges, status),
        (Defect::StatusGoesBack, status),
        (Defect::StatusAppliesUncommitted, status),
        (Defect::TransfersWithinTheTerm, "all statuses name the same leader of a term"),
        (Defect::ChangesOneOfTwo, members),
        (Defect::LearnersVote, members),
        (Defect::ChangesPartially, refused_members),
        (Defect::FollowersChangeMembers, refused_members),
        (Defect::CompactsLess, compaction),
        (Defect::HidesFirstIndex, compaction),
        (Defect::LosesCompactedState, compaction),
        (Defect::TransfersToItself, transfer),
        (Defect::NamesSuccessorThatIsNotLeader, transfer),
        (Defect::TransfersToAnyNode, refused_transfer),
        (Defect::FollowersTransfer, refused_transfer),
        (Defect::AcceptsProposalsAfterShutdown, shut_down),
        (Defect::ServesStaleReadsAfterShutdown, shut_down),
        (Defect::ReportsRunningAfterShutdown, shut_down),
        (Defect::RefusesAppliedCommands, waiting),
        (Defect::LeavesProposalsPending, waiting),
        (Defect::ShutsDownWithoutFlush, "a shutdown flushes the state machine"),
        (
            Defect::KeepsLeadershipAfterShutdown,
            "a leader that is shut down transfers leadership, if the engine supports it",
        ),
        (Defect::ContinuesAfterPanic, panic),
        (Defect::HidesPanic, panic),
    ];
    assert_rejected(&rules(), &table, |defect| run(&[3], defect));
}

/// Under a paused clock, so that waiting for an event that never happens takes no time.
fn run(sizes: &[u64], defect: Defect) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.unwrap().block_on(run_suite(sizes, |size| async move { start(defect, size) }));
}
