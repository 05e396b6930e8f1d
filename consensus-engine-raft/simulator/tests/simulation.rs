//! Seeds that must pass, and what holds of every run; `make simulate` and `make soak` go on with more.

use consensus_raft_simulator::{Options, RARE_MISTAKES, page, run, shrink};

#[test]
fn random_troubles_break_no_property() {
    for seed in 0..400 {
        let outcome = run(&Options { seed, ..Options::default() });
        assert_eq!(outcome.failure, None, "make sim SEED={seed}");
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    let mut hashes = std::collections::BTreeSet::new();
    for seed in 0..30 {
        let once = || run(&Options { seed, ..Options::default() }).trace.hash;
        assert_eq!(once(), once(), "seed {seed}");
        hashes.insert(once());
    }
    assert_eq!(hashes.len(), 30, "another seed is another run");
    let traced = run(&Options { seed: 7, keeps_trace: true, ..Options::default() });
    assert_eq!(
        traced.trace.hash,
        run(&Options { seed: 7, ..Options::default() }).trace.hash,
        "looked at or not"
    );
}

#[test]
fn same_seed_with_mistakes_is_same_run_and_has_mistakes() {
    let mut faults = 0;
    for seed in 0..30 {
        let once = || run(&Options { seed, mistakes: true, ..Options::default() });
        let outcome = once();
        assert_eq!(outcome.trace.hash, once().trace.hash, "seed {seed}");
        faults += RARE_MISTAKES.iter().filter_map(|what| outcome.reached.get(what)).sum::<u64>();
    }
    assert!(faults > 10, "{faults} mistakes");
}

/// What the flight recorder and `raft-replay` rest on.
#[test]
fn a_replay_from_bytes_says_the_same() {
    for seed in 0..20 {
        let outcome = run(&Options { seed, replays: true, ..Options::default() });
        assert_eq!(outcome.failure, None, "seed {seed}");
        assert!(outcome.replayed > 1000, "seed {seed}: {}", outcome.replayed);
    }
}

#[test]
fn a_run_without_some_of_its_troubles_has_the_others() {
    let whole = run(&Options { seed: 3, ..Options::default() });
    assert!(whole.faults > 3, "{}", whole.faults);
    let skip = (1..=whole.troubles).collect();
    let quiet = run(&Options { seed: 3, skip, ..Options::default() });
    assert_eq!((quiet.faults, quiet.troubles, quiet.failure), (0, whole.troubles, None));
    assert!(
        shrink(&Options { seed: 3, ..Options::default() }).is_none(),
        "what passes has no smallest failure"
    );
}

#[test]
fn a_page_holds_the_run_and_ends_no_script() {
    let outcome = run(&Options { seed: 3, keeps_trace: true, stop_after_ms: 3_000, ..Options::default() });
    let page = page(3, &outcome).unwrap();
    assert!(page.contains("\"kind\":\"message\"") && page.contains("Seed 3,"));
    assert_eq!(page.matches("</script>").count(), 1);
    assert!(!page.contains("http:") && !page.contains("https:"), "the page needs nothing from elsewhere");
}
