//! Holders of one lock: a key that is created by one transaction and goes with a lease. Its create revision is the token.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use consensus_raft_simulator::Random;
use consensus_testkit::lock_history::{Hold, Write};
use kv_state_machine::{
    Compare, CompareResult, CompareTarget, Delete, KeyRange, KvOperation, KvResult, Put, Txn,
};
use tokio::time::sleep;

use crate::{leases::relied_on, world::World};

/// Records of all holders.
#[derive(Default)]
pub(crate) struct Records {
    pub(crate) holds: Mutex<Vec<Hold>>,
    pub(crate) writes: Mutex<Vec<Write>>,
}

/// Takes the lock again and again; gives it up, or leaves it to the lease and writes on.
pub(crate) async fn hold(world: Arc<World>, holder: u64, records: Arc<Records>) {
    let mut random = Random::new(world.plan.seed, 400 + holder);
    for n in 1.. {
        sleep(Duration::from_millis(random.below(200))).await;
        if world.is_over() || world.failure().is_some() {
            return;
        }
        let (lease, ttl) = ((1_000_000 * (1 + holder) + n).cast_signed(), 1 + random.below(3));
        let sent = world.now();
        if world.execute(KvOperation::GrantLease { id: lease, ttl }, &mut random).await.is_err() {
            continue;
        }
        let until = sent + relied_on(ttl);
        let Some(token) = lock(&world, lease, until, &mut random).await else { continue };
        let since = world.now();
        let is_left = random.percent(40);
        let gives_up =
            if is_left { until + relied_on(ttl) } else { since + Duration::from_millis(random.below(800)) };
        while world.now() < gives_up {
            write(&world, token, &records, &mut random).await;
            sleep(Duration::from_millis(5 + random.below(100))).await;
        }
        let hold = Hold { holder, token, since, until: until.min(world.now()) };
        records.holds.lock().unwrap().push(hold);
        world.count(if is_left { "lock left to its lease" } else { "lock released" });
        if !is_left {
            let delete = KvOperation::Delete(Delete { key: KEY.into(), ..Delete::default() });
            let _ = world.execute(if_created_at(token, vec![delete]), &mut random).await;
        }
    }
}

/// Tries to take the lock until the lease may have ended. Returns the token.
async fn lock(world: &World, lease_id: i64, until: Duration, random: &mut Random) -> Option<u64> {
    while world.now() < until {
        let put = Put { key: KEY.into(), value: "locked".into(), lease_id, ..Put::default() };
        if let Ok(answer) = world.execute(if_created_at(0, vec![KvOperation::Put(put)]), random).await
            && matches!(answer.result, KvResult::Txn(done) if done.succeeded)
        {
            return Some(answer.revision);
        }
        sleep(Duration::from_millis(20 + random.below(50))).await;
    }
    None
}

/// A write that is executed only if the lock's key is the one that was created with this token.
async fn write(world: &World, token: u64, records: &Records, random: &mut Random) {
    let put = Put { key: "w/locked".into(), value: token.to_string().into(), ..Put::default() };
    let began = world.now();
    let Ok(answer) = world.execute(if_created_at(token, vec![KvOperation::Put(put)]), random).await else {
        return;
    };
    let KvResult::Txn(done) = answer.result else { return };
    if !done.succeeded {
        world.count("guarded write of a former holder refused");
    }
    let revision = done.succeeded.then_some(answer.revision);
    records.writes.lock().unwrap().push(Write { token, began, revision });
}

fn if_created_at(revision: u64, success: Vec<KvOperation>) -> KvOperation {
    let compare = Compare {
        keys: KeyRange { key: Bytes::from_static(KEY.as_bytes()), range_end: None },
        target: CompareTarget::CreateRevision(revision.cast_signed()),
        result: CompareResult::Equal,
    };
    KvOperation::Txn(Txn { compare: vec![compare], success, ..Txn::default() })
}

const KEY: &str = "w/lock";
