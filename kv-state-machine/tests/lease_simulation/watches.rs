//! Watchers: each watches on one node after the other, and records what it is told.

use std::{sync::Arc, time::Duration};

use consensus_raft_simulator::Random;
use consensus_testkit::watch_history::{Event, Step};
use kv_state_machine::{WatchNews, WatchRequest, Watches};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use crate::{
    history::{Change, watched},
    world::{Node, World},
};

struct Watcher {
    world: Arc<World>,
    random: Random,
    steps: Vec<Step<Change>>,
    /// Revision up to which the watcher knows everything.
    covered: u64,
}

/// Watches until everything up to the revision in `until` is known. Returns what the watcher was told.
pub(crate) async fn run(
    world: Arc<World>,
    watcher: u64,
    until: watch::Receiver<Option<u64>>,
) -> Vec<Step<Change>> {
    let random = Random::new(world.plan.seed, 200 + watcher);
    let mut watcher = Watcher { world, random, steps: Vec::new(), covered: 0 };
    let mut patience = None;
    while until.borrow().is_none_or(|until| watcher.covered < until) {
        if until.borrow().is_some() {
            let gives_up = *patience.get_or_insert_with(|| Instant::now() + Duration::from_secs(30));
            if Instant::now() > gives_up {
                break; // The check says what is missing.
            }
        }
        match watcher.world.any_node(&mut watcher.random) {
            Some(node) => watcher.watch_on(&node, &until).await,
            None => sleep(Duration::from_millis(50)).await,
        }
    }
    watcher.steps
}

impl Watcher {
    async fn watch_on(&mut self, node: &Node, until: &watch::Receiver<Option<u64>>) {
        let Ok(mut watches) = node.database.watches() else { return };
        if !self.steps.is_empty() {
            self.world.count("watch resumed on another node");
        }
        self.steps.push(Step::Started(self.covered + 1));
        let start_revision = self.covered + 1;
        let (id, _) =
            watches.add(WatchRequest { keys: watched(), start_revision, ..WatchRequest::default() });
        // A watch that starts in the past is behind.
        self.look_at_progress(&watches, id);
        let leaves = Instant::now() + Duration::from_millis(50 + self.random.below(6_000));
        while Instant::now() < leaves
            && self.world.is_running(node)
            && until.borrow().is_none_or(|until| self.covered < until)
        {
            // Some watchers are slow, so that their events wait in the queue.
            if self.random.percent(10) {
                sleep(Duration::from_millis(self.random.below(500))).await;
            }
            let patience = Duration::from_millis(1 + self.random.below(100));
            match timeout(patience, watches.next()).await {
                Ok(Ok(news)) => {
                    if !self.take(news) {
                        return;
                    }
                }
                Ok(Err(_)) => return,
                Err(_) => {}
            }
            self.look_at_progress(&watches, id);
        }
    }

    /// Records a notification. Returns whether the watch goes on.
    fn take(&mut self, news: WatchNews) -> bool {
        match news {
            WatchNews::Events { events, .. } => {
                self.world.count("events delivered");
                let event = |event: &Arc<kv_state_machine::WatchEvent>| Event {
                    revision: event.kv.mod_revision,
                    what: Change {
                        key: event.kv.key.clone(),
                        value: (!event.deleted).then(|| event.kv.value.clone()),
                    },
                };
                let events: Vec<_> = events.iter().map(event).collect();
                self.covered = events.iter().map(|event| event.revision).fold(self.covered, u64::max);
                self.steps.push(Step::Events(events));
                true
            }
            WatchNews::Compacted { compacted, .. } => {
                self.world.count("watch lost its revision to a compaction");
                self.covered = self.covered.max(compacted - 1);
                self.steps.push(Step::Compacted(compacted));
                false
            }
            _ => true,
        }
    }

    /// Reads how far the watch is, in one of the two ways that there are.
    fn look_at_progress(&mut self, watches: &Watches, id: u64) {
        let progress = match self.random.below(3) {
            0 => watches.progress(),
            1 => watches.next_revision(id).map(|next| next - 1),
            _ => None,
        };
        if let Some(revision) = progress.filter(|revision| *revision > self.covered) {
            self.world.count("progress told");
            self.covered = revision;
            self.steps.push(Step::Progress(revision));
        }
    }
}
