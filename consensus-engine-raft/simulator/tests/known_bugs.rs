//! Bugs that the simulation finds at once: what shows, in every test run, that its checks can fail. `make bugs` is the whole
//! list. One test in a program of its own, as a bug is switched on for the whole process.

use std::time::Duration;

use consensus_core::bugs::{self, Bug};
use consensus_raft_simulator::{Options, hunt, model, shrink};

#[test]
fn known_bugs_are_found() {
    let limit = Duration::from_secs(60);
    for bug in [
        Bug::E2,
        Bug::E4,
        Bug::P1,
        Bug::P9,
        Bug::C12,
        Bug::C20,
        Bug::C24,
        Bug::R1,
        Bug::R7,
        Bug::M4,
        Bug::M10,
        Bug::S4,
        Bug::S5,
        Bug::S9,
        Bug::D1,
        Bug::D3,
        Bug::K1,
        Bug::K2,
        Bug::T2,
    ] {
        let score = hunt(bug, 2, limit).expect("a test build has bugs to switch on");
        assert!(score.found.is_some(), "{bug:?}: {} was not found in {} seeds", score.text, score.seeds);
    }
    a_failure_is_made_small();
    the_model_checker_shows_a_shortest_way();
    what_makes_states_fewer_hides_no_bug();
}

fn a_failure_is_made_small() {
    bugs::switch_on(Some(Bug::K1));
    let runs = (0..1000).map(|seed| Options { seed, ..Options::default() });
    let (options, outcome) = runs.into_iter().find_map(|options| shrink(&options)).expect("one fails");
    assert!(outcome.failure.is_some());
    assert!(!options.skip.is_empty() && outcome.faults < 5, "{} troubles are left", outcome.faults);
    assert!(outcome.trace.tell().contains("FAILURE"));
    bugs::switch_on(None);
}

fn the_model_checker_shows_a_shortest_way() {
    let found = model_check("entries", Bug::C20);
    let (why, way) = found.violation.expect("an entry that is on one disk is committed");
    assert!(why.starts_with("I4"), "{why}");
    assert!(way.contains("  1. Propose(0)"), "{way}");
}

/// Those that the model checker is there for, each by the scenario that is.
fn what_makes_states_fewer_hides_no_bug() {
    for (bug, scenario) in [
        (Bug::E1, "votes"),
        (Bug::E4, "votes"),
        (Bug::E6, "terms"),
        (Bug::C1, "figure-8"),
        (Bug::R4, "lease"),
        (Bug::R5, "transfer"),
        (Bug::R10, "lease-disconnected"),
    ] {
        let found = model_check(scenario, bug);
        assert!(found.violation.is_some(), "{bug:?} is not found in {scenario}: {found:?}");
    }
}

fn model_check(name: &str, bug: Bug) -> model::Found {
    bugs::switch_on(Some(bug));
    let scenario = model::scenarios().into_iter().find(|scenario| scenario.name == name).unwrap();
    let limits = model::Limits { states: 400_000, time: Duration::from_secs(120), threads: 2 };
    let found = model::search(&scenario, limits).unwrap();
    bugs::switch_on(None);
    found
}
