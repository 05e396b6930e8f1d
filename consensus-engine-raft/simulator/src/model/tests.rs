//! Checks that the reductions lose no relevant state.

use std::{
    collections::HashSet,
    hash::{Hash, Hasher},
    sync::Mutex,
    time::Duration,
};

use consensus_core::LogIndex;
use consensus_raft_protocol::model::{Fingerprint, hash_hard_state};

use super::{
    scenario::{Budget, Clocks, Scenario, scenarios},
    search::{Limits, search, search_in},
    state::{State, World},
};

/// Combined states of all nodes, without timers and their knowledge of each other.
fn visible(world: &World, state: &State) -> u64 {
    let under = |names: &Vec<u8>| {
        let mut nodes = 0u64;
        for (node, name) in state.nodes.iter().zip(names) {
            let (mut hasher, raft) = (Fingerprint::default(), &node.raft);
            (name, raft.role() as u8, raft.commit(), raft.durable(), raft.purged(), node.applied)
                .hash(&mut hasher);
            hash_hard_state(raft.hard_state(), names, &mut hasher);
            hash_hard_state(&node.disk.hard, names, &mut hasher);
            (1..=raft.last_log().index.0).for_each(|index| raft.id_at(LogIndex(index)).hash(&mut hasher));
            node.disk.entries.iter().for_each(|(id, _)| id.hash(&mut hasher));
            nodes = nodes.wrapping_add(hasher.finish());
        }
        nodes
    };
    world.names.iter().map(under).min().unwrap_or_default()
}

fn all_visible(scenario: &Scenario, reduces: bool) -> (u64, HashSet<u64>) {
    let all = Mutex::new(HashSet::new());
    let limits = Limits { states: 10_000_000, time: Duration::from_secs(600), threads: 2 };
    let found = search_in(World::new(scenario.clone(), reduces), limits, &|world, state| {
        all.lock().unwrap().insert(visible(world, state));
    });
    let found = found.unwrap();
    assert!(found.is_complete, "{}: {found:?}", scenario.name);
    (found.states, all.into_inner().unwrap())
}

/// The scenario with smaller limits.
fn small(name: &str, budget: Budget) -> Scenario {
    let scenario = scenarios().into_iter().find(|scenario| scenario.name == name).unwrap();
    Scenario { budget, ..scenario }
}

#[test]
fn page_on_testing_names_every_scenario() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/testing.md");
    let page = std::fs::read_to_string(page).unwrap();
    let names: Vec<&str> = scenarios().iter().map(|scenario| scenario.name).collect();
    for name in &names {
        assert!(page.contains(&format!("`{name}`")), "docs/testing.md does not name the scenario {name}");
    }
    let small = names.iter().filter(|name| !name.ends_with("-more")).count();
    let words = format!("{} scenarios, of which {small} are small enough", names.len());
    assert!(page.contains(&words), "docs/testing.md does not say: {words}");
}

#[test]
fn reductions_reach_all_node_states() {
    let once = Budget { terms: 2, ..Budget::default() };
    let cases = [
        small("votes", Budget { ticks: 2, terms: 1, crashes: 1, ..once }),
        small("terms", Budget { ticks: 2, terms: 2, ..once }),
        small("entries", Budget { proposals: 1, crashes: 1, ..once }),
        small("successor", Budget { ticks: 1, ..once }),
        small("conflict", Budget { ticks: 1, terms: 3, ..once }),
        small("snapshot", Budget { ticks: 1, compactions: 1, ..once }),
        small("read", Budget { ticks: 1, reads: 1, ..once }),
    ];
    for scenario in cases {
        let ((many, whole), (few, reduced)) = (all_visible(&scenario, false), all_visible(&scenario, true));
        println!("{}: {many} states, {few} are enough for {} of the nodes", scenario.name, whole.len());
        assert_eq!(whole.len(), reduced.len(), "{}", scenario.name);
        assert!(whole == reduced, "{}", scenario.name);
        assert!(few < many, "{}", scenario.name);
    }
}

/// Leases are configured for a drift of ten percent; clocks that drift more must lead to a stale read.
#[test]
fn search_with_clocks_beyond_the_lease_bound_shows_shortest_way_to_a_stale_read() {
    let lease = scenarios().into_iter().find(|scenario| scenario.name == "lease").unwrap();
    let scenario = Scenario { clocks: Clocks::Common(&[50, 200, 200]), ..lease };
    let limits = Limits { states: 400_000, time: Duration::from_secs(120), threads: 2 };
    let found = search(&scenario, limits).unwrap();
    let (why, way) = found.violation.expect("a lease read after another leader committed an entry");
    assert!(why.starts_with("I9: a read"), "{why}");
    assert!(way.contains("  1. ") && way.contains(&why), "{way}");
}
