//! Owners of leases: each renews its lease for a while, then stops; a reader looks whether the lease's key is there.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use consensus_raft_simulator::Random;
use consensus_testkit::lease_history::{self, Lease, Promise, Read, Renewal};
use kv_state_machine::{KvOperation, KvRejection, KvResult, Put, Range};
use tokio::time::sleep;

use crate::{
    plan::ELECTION_TIMEOUT,
    world::{Failure, World},
};

/// A lease and what a reader saw of its key.
struct Held {
    lease: Lease,
    reads: Vec<Read>,
}

/// Holds one lease after the other, and checks each when its key is gone.
pub(crate) async fn own(world: Arc<World>, owner: u64) {
    let mut random = Random::new(world.plan.seed, 300 + owner);
    for n in 1.. {
        if world.is_over() || world.failure().is_some() {
            return;
        }
        sleep(Duration::from_millis(random.below(200))).await;
        let (id, ttl) = ((1000 * (1 + owner) + n).cast_signed(), 1 + random.below(8));
        let key = Bytes::from(format!("w/lease-{id}"));
        let Some(lease) = grant(&world, id, ttl, &key, &mut random).await else { continue };
        let held = Mutex::new(Held { lease, reads: Vec::new() });
        let reads = Random::new(random.next(), 0);
        tokio::join!(renew(&world, id, &held, &mut random), read_until_gone(&world, &key, &held, reads));
        check(&world, &held.into_inner().unwrap());
    }
}

/// Grants a lease and attaches a key; `None` if it is not known that both was done.
async fn grant(world: &World, id: i64, ttl: u64, key: &Bytes, random: &mut Random) -> Option<Lease> {
    let sent = world.now();
    world.execute(KvOperation::GrantLease { id, ttl }, random).await.ok()?;
    let put = Put { key: key.clone(), value: "held".into(), lease_id: id, ..Put::default() };
    match world.execute(KvOperation::Put(put), random).await {
        Ok(_) => {}
        Err(Failure::Rejected(KvRejection::NoLease { .. })) if world.now() < sent + relied_on(ttl) => {
            world.fail(format!("lease {id} of {ttl} s ended early: it was granted when {sent:?} had passed"));
            return None;
        }
        Err(_) => return None,
    }
    let attached = world.now();
    let renewals = vec![Renewal { sent, ended: attached, ttl: Some(relied_on(ttl)) }];
    Some(Lease { name: id.to_string(), ttl: Duration::from_secs(ttl), renewals, attached })
}

/// Renews a lease some times.
async fn renew(world: &World, id: i64, held: &Mutex<Held>, random: &mut Random) {
    let ttl = held.lock().unwrap().lease.ttl;
    for _ in 0..random.below(6) {
        // Half of the renewals come when the time that is left is noted.
        let is_aimed = random.percent(50);
        let pause = if is_aimed {
            checkpoint_interval(ttl) + Duration::from_millis(random.below(400))
        } else {
            ttl * (10 + random.below(85) as u32) / 100
        };
        sleep(pause).await;
        let sent = world.now();
        let renewed = keep_alive(world, id, random).await;
        let ended = world.now();
        let mut held = held.lock().unwrap();
        match renewed {
            Some(Some(ttl)) => {
                world.count("lease renewed");
                let ttl = Some(relied_on(ttl));
                held.lease.renewals.push(Renewal { sent, ended, ttl });
            }
            Some(None) => {
                world.count("lease had ended when it was to be renewed");
                return held.reads.push(Read { began: sent, ended, is_there: false });
            }
            None => {
                world.count("lease renewal without an answer");
                held.lease.renewals.push(Renewal { sent, ended, ttl: None });
            }
        }
        if is_aimed && random.percent(50) {
            world.crash_wanted.notify_one();
            return;
        }
    }
}

/// Renews a lease on the leader; `None` without an answer, `Some(None)` if there is no such lease.
async fn keep_alive(world: &World, id: i64, random: &mut Random) -> Option<Option<u64>> {
    let node = world.leader()?;
    let database = node.database.clone();
    world.ask(&node, random, async move { database.keep_alive(id).await }).await?.ok()
}

async fn read_until_gone(world: &World, key: &Bytes, held: &Mutex<Held>, mut random: Random) {
    let started = world.now();
    loop {
        let began = world.now();
        let range = KvOperation::Range(Range { key: key.clone(), ..Range::default() });
        if let Ok(answer) = world.execute(range, &mut random).await
            && let KvResult::Range(found) = answer.result
        {
            let read = Read { began, ended: world.now(), is_there: !found.kvs.is_empty() };
            held.lock().unwrap().reads.push(read);
            if !read.is_there {
                return;
            }
        }
        if world.now() > started + GONE_MAX {
            return world.fail(format!("{key:?} is still there after {GONE_MAX:?}"));
        }
        sleep(Duration::from_millis(10 + random.below(80))).await;
    }
}

fn check(world: &World, held: &Held) {
    let Held { lease, reads } = held;
    // A leader notes what is left, in whole seconds.
    let checkpoint_interval = Some(checkpoint_interval(lease.ttl));
    let promise = Promise { grace: 2 * ELECTION_TIMEOUT, checkpoint_interval };
    let disturbances = world.disturbances();
    let (from, to) = (lease.attached, lease_history::held_until(lease));
    if disturbances.iter().any(|disturbance| disturbance.from > from && disturbance.to < to) {
        world.count("lease outlived a change of leaders");
    }
    if let Err(violation) = lease_history::check(lease, reads, &promise, &disturbances) {
        world.fail(format!("{violation}\n{lease:#?}\n{disturbances:?}"));
    }
}

/// Part of the TTL that an owner relies on: its clock and that of the leader do not run alike.
pub(crate) fn relied_on(ttl: u64) -> Duration {
    Duration::from_millis(990 * ttl)
}

fn checkpoint_interval(ttl: Duration) -> Duration {
    Duration::from_secs((ttl.as_secs() / 2).max(1))
}

/// Far longer than any lease of a run can live.
const GONE_MAX: Duration = Duration::from_secs(200);
