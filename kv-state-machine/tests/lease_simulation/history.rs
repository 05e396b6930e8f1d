//! Writes of watched keys, and their complete history, which is read without a watch.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use consensus_raft_simulator::Random;
use consensus_testkit::watch_history::Event;
use kv_state_machine::{
    Consistency, Delete, KeyRange, KeyValue, KvError, KvOperation, KvResult, Put, Range, Txn,
};
use tokio::time::{Instant, sleep};

use crate::world::World;

/// A key with its new value, or without one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) key: Bytes,
    pub(crate) value: Option<Bytes>,
}

/// Range of the watched keys.
pub(crate) fn watched() -> KeyRange {
    KeyRange { key: "w/".into(), range_end: Some("w0".into()) }
}

/// Writes some watched keys at one revision, again and again.
pub(crate) async fn write(world: Arc<World>, writer: u64) {
    let mut random = Random::new(world.plan.seed, 100 + writer);
    for n in 0.. {
        sleep(Duration::from_millis(5 + random.below(150))).await;
        if world.is_over() {
            return;
        }
        let first = random.below(KEYS);
        let success = (0..1 + random.below(3)).map(|offset| {
            let key = Bytes::from(format!("w/{}", (first + offset) % KEYS));
            if random.percent(25) {
                KvOperation::Delete(Delete { key, ..Delete::default() })
            } else {
                KvOperation::Put(Put { key, value: format!("{writer}-{n}").into(), ..Put::default() })
            }
        });
        let txn = Txn { success: success.collect(), ..Txn::default() };
        // Whether it was executed is known from the history.
        let _ = world.execute(KvOperation::Txn(txn), &mut random).await;
    }
}

/// The complete history up to a revision.
#[derive(Default)]
pub(crate) struct History {
    pub(crate) events: Vec<Event<Change>>,
    pub(crate) through: u64,
    /// Watched pairs at that revision.
    pairs: Vec<KeyValue>,
}

/// Reads every revision soon after it was written, and compacts the history behind if the plan says so.
pub(crate) async fn read(world: Arc<World>) -> History {
    let (mut random, mut history) = (Random::new(world.plan.seed, 4), History::default());
    while !world.is_settled() {
        sleep(Duration::from_millis(100 + random.below(1_500))).await;
        let _ = history.read_on(&world, &mut random).await;
        if world.plan.compact_history && random.percent(50) && history.through > 2 {
            let revision = history.through - random.below(history.through.min(20));
            if world.execute(KvOperation::Compact { revision }, &mut random).await.is_ok() {
                world.count("history compacted");
            }
        }
    }
    let began = Instant::now();
    while history.read_on(&world, &mut random).await.is_none() {
        if began.elapsed() > Duration::from_secs(30) {
            world.fail("no node serves reads after the last fault".to_owned());
            break;
        }
        sleep(Duration::from_millis(50)).await;
    }
    history
}

impl History {
    /// Reads up to the newest revision; `None` if that did not succeed.
    async fn read_on(&mut self, world: &World, random: &mut Random) -> Option<()> {
        let node = world.any_node(random)?;
        let database = node.database.clone();
        let newest = async move {
            database
                .execute_operation(KvOperation::Range(Range { key: "probe".into(), ..Range::default() }))
                .await
        };
        let newest = world.ask(&node, random, newest).await?.ok()?.revision;
        for revision in self.through + 1..=newest {
            let KeyRange { key, range_end } = watched();
            let range = KvOperation::Range(Range { key, range_end, revision, ..Range::default() });
            let answer = node.database.execute(range, None, Consistency::Stale).await;
            match answer {
                Ok(answer) => {
                    let KvResult::Range(found) = answer.result else { return None };
                    self.add(revision, found.kvs);
                }
                // Only this task compacts, and nothing that it has not read.
                Err(KvError::Rejected(rejection)) => {
                    world
                        .fail(format!("revision {revision} cannot be read on node {}: {rejection}", node.id));
                    return None;
                }
                Err(_) => return None,
            }
        }
        Some(())
    }

    fn add(&mut self, revision: u64, pairs: Vec<KeyValue>) {
        let mut changes = Vec::new();
        for before in &self.pairs {
            if pairs.iter().all(|now| now.key != before.key) {
                changes.push(Change { key: before.key.clone(), value: None });
            }
        }
        for now in pairs.iter().filter(|now| now.mod_revision == revision) {
            changes.push(Change { key: now.key.clone(), value: Some(now.value.clone()) });
        }
        self.events.extend(changes.into_iter().map(|what| Event { revision, what }));
        (self.pairs, self.through) = (pairs, revision);
    }
}

const KEYS: u64 = 8;
