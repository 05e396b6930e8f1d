//! Known bugs of the driver, switched on one after the other: what would find them if they were there.
//!
//! The switch is one for the whole process, so this is a test binary of its own, with one test.

use std::time::{Duration, Instant};

use consensus_core::bugs::{Bug, switch_on};

mod scenes;
mod simulation;

/// Switched off again whatever happens.
struct SwitchedOn;

impl SwitchedOn {
    fn new(bug: Bug) -> Self {
        assert!(switch_on(Some(bug)), "a build with bugs to switch on");
        Self
    }
}

impl Drop for SwitchedOn {
    fn drop(&mut self) {
        switch_on(None);
    }
}

#[test]
fn every_known_bug_of_the_driver_is_found() {
    let mut missed = Vec::new();
    for bug in BY_SEEDS {
        let began = Instant::now();
        let _on = SwitchedOn::new(*bug);
        let found = (0..SEEDS_MAX).find_map(|seed| Some((seed, simulation::run(seed).failure?)));
        match found {
            Some((seed, why)) => report(*bug, &format!("seed {seed}"), began.elapsed(), &why),
            None => missed.push(*bug),
        }
    }
    for (bug, scene) in BY_SCENES {
        assert_eq!(scene(), Ok(()), "{bug:?} is off");
        let began = Instant::now();
        let _on = SwitchedOn::new(*bug);
        match scene() {
            Err(why) => report(*bug, "scene", began.elapsed(), &why),
            Ok(()) => missed.push(*bug),
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}

fn report(bug: Bug, by: &str, took: Duration, why: &str) {
    let why = why.lines().next().unwrap_or_default();
    println!("{bug:?}, {by}, {:.1} s: {why}", took.as_secs_f64());
}

/// Runs a scene, on threads.
fn played(scene: impl Future<Output = Result<(), String>>) -> Result<(), String> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime").block_on(scene)
}

const BY_SEEDS: &[Bug] = &[Bug::C18, Bug::K1, Bug::R7, Bug::D2, Bug::D3, Bug::S6, Bug::K2];

/// Those that take threads, or a coincidence that no seed comes by.
const BY_SCENES: &[(Bug, fn() -> Result<(), String>)] = &[
    (Bug::D3, || played(scenes::write_under_way())),
    (Bug::S3, || played(scenes::restore_behind_an_apply())),
    (Bug::S7, || played(scenes::chunk_without_a_beginning())),
];

const SEEDS_MAX: u64 = 2_000;
