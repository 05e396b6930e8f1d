//! Seeds that must pass, and properties of every run; `make simulate` and `make soak` run more seeds.

use consensus_raft_simulator::{Options, RARE_MISTAKES, page, run, shrink};

#[test]
fn random_faults_break_no_property() {
    for seed in 0..400 {
        let outcome = run(&Options { seed, ..Options::default() });
        assert_eq!(outcome.failure, None, "make sim SEED={seed}");
    }
}

#[test]
fn same_seed_repeats_the_run() {
    let mut hashes = std::collections::BTreeSet::new();
    for seed in 0..30 {
        let once = || run(&Options { seed, ..Options::default() }).trace.hash;
        assert_eq!(once(), once(), "seed {seed}");
        hashes.insert(once());
    }
    assert_eq!(hashes.len(), 30, "different seeds have different runs");
    let traced = run(&Options { seed: 7, keeps_trace: true, ..Options::default() });
    assert_eq!(
        traced.trace.hash,
        run(&Options { seed: 7, ..Options::default() }).trace.hash,
        "with and without a kept trace"
    );
}

#[test]
fn same_seed_with_mistakes_repeats_the_run() {
    let mut faults = 0;
    for seed in 0..30 {
        let once = || run(&Options { seed, mistakes: true, ..Options::default() });
        let outcome = once();
        assert_eq!(outcome.trace.hash, once().trace.hash, "seed {seed}");
        faults += RARE_MISTAKES.iter().filter_map(|what| outcome.reached.get(what)).sum::<u64>();
    }
    assert!(faults > 10, "{faults} mistakes");
}

/// Assumptions of the flight recorder and `raft-replay`.
#[test]
fn replay_from_encoded_state_returns_the_same() {
    for seed in 0..20 {
        let outcome = run(&Options { seed, replays: true, ..Options::default() });
        assert_eq!(outcome.failure, None, "seed {seed}");
        assert!(outcome.replayed > 1000, "seed {seed}: {}", outcome.replayed);
    }
}

#[test]
fn run_without_some_faults_has_the_others() {
    let whole = run(&Options { seed: 3, ..Options::default() });
    assert!(whole.faults_injected > 3, "{}", whole.faults_injected);
    let skip = (1..=whole.last_fault).collect();
    let quiet = run(&Options { seed: 3, skip, ..Options::default() });
    assert_eq!((quiet.faults_injected, quiet.last_fault, quiet.failure), (0, whole.last_fault, None));
    assert!(
        shrink(&Options { seed: 3, ..Options::default() }).is_none(),
        "a run that passes has no smallest failure"
    );
}

#[test]
fn page_contains_the_run_and_text_cannot_end_its_script() {
    let outcome = run(&Options { seed: 3, keeps_trace: true, stop_after_ms: 3_000, ..Options::default() });
    let page = page(3, &outcome).unwrap();
    assert!(page.contains("\"kind\":\"message\"") && page.contains("Seed 3,"));
    assert_eq!(page.matches("</script>").count(), 1);
    assert!(!page.contains("http:") && !page.contains("https:"), "the page is self-contained");
}
