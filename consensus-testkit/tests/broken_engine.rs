//! The suite of `ConsensusEngine` rejects what is broken: a cluster in memory with one defect at a time.

#[path = "broken_engine/cluster.rs"]
mod cluster;
mod common;
#[path = "broken_engine/engine.rs"]
mod engine;

use cluster::{Defect, start};
use common::assert_rejected;
use consensus_testkit::engine::{rules, run_suite};

#[test]
fn without_a_defect_it_passes() {
    run(&[1, 2, 3, 5], Defect::None);
}

#[test]
fn each_rule_rejects_what_breaks_it() {
    let order = "all nodes apply one order, and each command once";
    let answer = "an answer has the position and the response of its command";
    let dropped = "a proposal or read that was dropped disturbs nobody, and is applied once at most";
    let barrier = "a read after a barrier sees what was acknowledged before";
    let stale = "a stale read is answered at once by every node, with what it has applied";
    let follower = "who does not lead names the leader, or hands on";
    let status = "the status is that of the node, and never goes backwards";
    let members = "members change in one step, or the engine says that they cannot";
    let refused_members = "a change of members that is refused changes nothing";
    let compaction = "the log is compacted and nothing is lost, or the engine has none";
    let transfer = "the lead is handed over, or the engine says that it cannot be";
    let refused_transfer = "the lead is not given to who cannot take it, nor by who does not have it";
    let shut_down = "who is shut down says so";
    let waiting = "a shutdown leaves no proposal without a true answer";
    let panic = "a panic of the state machine stops its engine, which says why";
    let table = [
        (Defect::FollowersMissACommand, order),
        (Defect::FollowersSwapCommands, order),
        (Defect::AppliesTwice, order),
        (Defect::AnswersWithAnotherResponse, answer),
        (Defect::AnswersWithAnotherPosition, answer),
        (Defect::RefusesEmptyCommands, "any bytes are a command, and none too"),
        (Defect::ProposesAgainWhatWasDropped, dropped),
        (Defect::StopsAtWhatWasDropped, dropped),
        (Defect::FollowersReadAtOnce, barrier),
        (Defect::BarriersAtNothing, barrier),
        (Defect::StaleReadsAtCommit, stale),
        (Defect::FollowersRefuseStaleReads, stale),
        (Defect::NamesNobody, follower),
        (Defect::AnswersWithoutHandingOn, follower),
        (Defect::RefusesAndProposes, "what is refused is not applied"),
        (Defect::StatusStandsStill, status),
        (Defect::StatusGoesBack, status),
        (Defect::StatusAppliesTheUncommitted, status),
        (Defect::TransfersWithinTheTerm, "all statuses name one leader in a term"),
        (Defect::ChangesOneOfTwo, members),
        (Defect::LearnersVote, members),
        (Defect::ChangesInPart, refused_members),
        (Defect::FollowersChangeMembers, refused_members),
        (Defect::CompactsLess, compaction),
        (Defect::HidesWhereTheLogBegins, compaction),
        (Defect::LosesWhatItCompacts, compaction),
        (Defect::TransfersToItself, transfer),
        (Defect::NamesAnHeirWhoDoesNotLead, transfer),
        (Defect::TransfersToAnybody, refused_transfer),
        (Defect::FollowersTransfer, refused_transfer),
        (Defect::ProposalsGoOnWhenShutDown, shut_down),
        (Defect::StaleReadsGoOnWhenShutDown, shut_down),
        (Defect::SaysRunningWhenShutDown, shut_down),
        (Defect::RefusesWhatIsApplied, waiting),
        (Defect::LeavesProposalsUnanswered, waiting),
        (Defect::ShutsDownUnflushed, "a shutdown flushes the state machine"),
        (
            Defect::TakesTheLeadAlong,
            "a leader that is shut down leaves the lead to another, if the engine can",
        ),
        (Defect::SurvivesAPanic, panic),
        (Defect::HidesAPanic, panic),
    ];
    assert_rejected(&rules(), &table, |defect| run(&[3], defect));
}

/// In paused time: what never happens is waited for in no time.
fn run(sizes: &[u64], defect: Defect) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.unwrap().block_on(run_suite(sizes, |size| async move { start(defect, size) }));
}
