#!/usr/bin/env bash
# OmniPaxos returns Ok from append for entries that it then loses for good, without a word to the caller.
#
# Guess: an entry that a follower forwards to a leader that cannot be reached is kept and sent again to the next leader; an
#   append after reconfigure() is PendingReconfigEntry.
# Seen: both are Ok and gone. After the cut is healed and a new leader has been elected the forwarded entry is in no log;
#   entries appended on any node between reconfigure() and its decision are in no log either. The error PendingReconfigEntry
#   comes only once the stop-sign has arrived at the node.
# Versions: omnipaxos 0.2.4 with omnipaxos_storage 0.2.4 (crates.io).
# Output seen:
#   forwarded to a leader that is cut off: Ok(())
#   decided everywhere after healing: ["first"]
#   reconfigure: Ok(()), append right after it: Ok(())
#   decided everywhere: ["first", "stop-sign"]
# Why it hits users: an application that answers its client after append, or waits for its own entry to be decided without a
#   time-out, loses writes or hangs at each change of leader and each reconfiguration.
# What kv-server does: its engine's propose returns when the entry is applied, or with an error that says whether it may
#   have been; at a change of leadership every pending proposal gets such an answer.
set -euo pipefail

work=$(mktemp -d)
pids=()
clean_up() {
  for pid in "${pids[@]:-}"; do
    if [[ -n $pid ]]; then { kill -KILL "$pid" && wait "$pid"; } 2>/dev/null || true; fi
  done
  rm -rf "$work"
}
trap clean_up EXIT
fail() {
  echo "no longer as stated: $*" >&2
  exit 1
}

mkdir -p "$work/lost/src"
cat > "$work/lost/Cargo.toml" <<'EOF'
[package]
name = "lost"
version = "0.1.0"
edition = "2021"

[dependencies]
omnipaxos = { version = "=0.2.4", features = ["macros"] }
omnipaxos_storage = "=0.2.4"
EOF
cat > "$work/lost/src/main.rs" <<'EOF'
use omnipaxos::{macros::Entry, util::LogEntry, ClusterConfig, OmniPaxos, OmniPaxosConfig, ServerConfig};
use omnipaxos_storage::memory_storage::MemoryStorage;

#[derive(Clone, Debug, Entry)]
struct Command(String);

type Node = OmniPaxos<Command, MemoryStorage<Command>>;

fn cluster(configuration_id: u32) -> ClusterConfig {
    ClusterConfig { configuration_id, nodes: vec![1, 2, 3], ..Default::default() }
}

fn start(pid: u64) -> Node {
    let server_config = ServerConfig { pid, election_tick_timeout: 5, ..Default::default() };
    OmniPaxosConfig { cluster_config: cluster(1), server_config }.build(MemoryStorage::default()).expect("node")
}

/// Lets time pass and delivers all messages except those from and to `cut_off`.
fn run(nodes: &mut [Node], ticks: usize, cut_off: Option<u64>) {
    for _ in 0..ticks {
        for node in nodes.iter_mut() {
            node.tick();
        }
        for _ in 0..5 {
            let mut messages = Vec::new();
            for node in nodes.iter_mut() {
                let mut outgoing = Vec::new();
                node.take_outgoing_messages(&mut outgoing);
                messages.extend(outgoing);
            }
            for message in messages {
                let ends = [message.get_sender(), message.get_receiver()];
                if cut_off.is_some_and(|node| ends.contains(&node)) {
                    continue;
                }
                nodes[ends[1] as usize - 1].handle_incoming(message);
            }
        }
    }
}

/// What is decided, if all three nodes agree on it.
fn decided(nodes: &[Node]) -> Vec<String> {
    let logs: Vec<Vec<String>> = nodes
        .iter()
        .map(|node| {
            let entries = node.read_decided_suffix(0).unwrap_or_default();
            entries
                .into_iter()
                .map(|entry| match entry {
                    LogEntry::Decided(command) => command.0,
                    LogEntry::StopSign(..) => "stop-sign".to_string(),
                    other => format!("{other:?}"),
                })
                .collect()
        })
        .collect();
    assert!(logs.iter().all(|log| *log == logs[0]), "{logs:?}");
    logs[0].clone()
}

fn main() {
    let mut nodes: Vec<Node> = (1..=3).map(start).collect();
    run(&mut nodes, 100, None);
    nodes[0].append(Command("first".into())).expect("append");
    run(&mut nodes, 100, None);
    assert_eq!(decided(&nodes), ["first"]);

    let leader = nodes[0].get_current_leader().expect("leader").0;
    let follower = (leader % 3) as usize;
    // The leader is cut off; the follower does not know it yet and forwards to it.
    let accepted = nodes[follower].append(Command("forwarded".into()));
    println!("forwarded to a leader that is cut off: {accepted:?}");
    run(&mut nodes, 200, Some(leader));
    assert_ne!(nodes[follower].get_current_leader().expect("leader").0, leader);
    run(&mut nodes, 400, None);
    println!("decided everywhere after healing: {:?}", decided(&nodes));

    let leader = nodes[0].get_current_leader().expect("leader").0;
    let follower = (leader % 3) as usize;
    let reconfigured = nodes[follower].reconfigure(cluster(2), None);
    let accepted = nodes[follower].append(Command("after".into()));
    println!("reconfigure: {reconfigured:?}, append right after it: {accepted:?}");
    run(&mut nodes, 400, None);
    println!("decided everywhere: {:?}", decided(&nodes));
}
EOF
CARGO_TARGET_DIR=$work/target cargo build --quiet --manifest-path "$work/lost/Cargo.toml"
"$work/target/debug/lost" | tee "$work/out"

grep -q '^forwarded to a leader that is cut off: Ok(())$' "$work/out" || fail "the forwarded entry is refused"
grep -q '^decided everywhere after healing: \["first"\]$' "$work/out" || fail "the forwarded entry is not lost"
grep -q 'append right after it: Ok(())$' "$work/out" || fail "an append after reconfigure is refused"
grep -q '^decided everywhere: \["first", "stop-sign"\]$' "$work/out" || fail "the entry after reconfigure is not lost"
