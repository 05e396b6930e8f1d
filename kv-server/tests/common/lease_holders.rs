//! Owners of leases: each renews its lease for a while, then stops; readers look whether the lease's key is there.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use consensus_testkit::lease_history::{self, Disturbance, Lease, Promise, Read, Renewal};
use kv_store_client::{ClientError, KvClient, idl::PutRequest, protocol::Fault};
use rand::{Rng, SeedableRng, rngs::SmallRng};

use super::{timeline::Timeline, watchers::WATCHED};

/// A lease and what readers saw of its key.
pub struct Held {
    lease: Lease,
    reads: Vec<Read>,
}

/// All leases of a test whose keys are gone.
#[derive(Default)]
pub struct Leases(Mutex<Vec<Held>>);

impl Leases {
    /// Grants, renews and leaves one lease after the other, until it is told to stop.
    pub async fn hold(&self, client: KvClient, seed: u64, timeline: &Timeline, stop: &AtomicBool) {
        let mut random = SmallRng::seed_from_u64(seed);
        for n in 0.. {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            let name = format!("{WATCHED}leases/{seed}-{n}");
            let ttl = random.random_range(1..5);
            let Some((lease, id)) = grant(&client, &name, ttl, timeline).await else { continue };
            let seen = Arc::new(Mutex::new(Held { lease, reads: Vec::new() }));
            let renewals = (0..random.random_range(0..5)).map(|_| random.random_range(10..100)).collect();
            let ((), ()) = tokio::join!(
                renew(&client, id, renewals, timeline, &seen),
                read_until_gone(&client, &name, timeline, &seen),
            );
            let held = Arc::into_inner(seen).expect("both have ended").into_inner().unwrap();
            self.0.lock().unwrap().push(held);
        }
    }

    /// Panics if a lease ended early, or if its key stayed. Returns the numbers of leases, renewals and reads.
    pub fn check(&self, grace: Duration, disturbances: &[Disturbance]) -> (usize, usize, usize) {
        let all = self.0.lock().unwrap();
        for Held { lease, reads } in &*all {
            // The store notes what is left of a lease after half of its time, and in whole seconds.
            let checkpoint_interval = Some(Duration::from_secs((lease.ttl.as_secs() / 2).max(1)));
            let promise = Promise { grace, checkpoint_interval };
            if let Err(violation) = lease_history::check(lease, reads, &promise, disturbances) {
                panic!("{violation}\n{lease:#?}\ndisturbances: {disturbances:#?}");
            }
        }
        let renewals = all.iter().map(|held| held.lease.renewals.len() - 1).sum();
        (all.len(), renewals, all.iter().map(|held| held.reads.len()).sum())
    }
}

/// Grants a lease of some seconds and attaches a key; `None` if it is not known that both was done.
async fn grant(client: &KvClient, name: &str, ttl: u64, timeline: &Timeline) -> Option<(Lease, i64)> {
    let sent = timeline.now();
    let granted = client.grant_lease(ttl.cast_signed(), None).await.ok()?;
    let put = PutRequest { lease_id: Some(granted.lease_id), ..PutRequest::of(name, "held") };
    match client.put_with(put).await {
        Ok(_) => {}
        Err(ClientError::Unavailable(_) | ClientError::Unknown(_)) => return None,
        Err(error @ ClientError::Rejected(Fault::NoLease(_))) => {
            let held_until = sent + Duration::from_secs(granted.ttl_seconds.unsigned_abs());
            assert!(timeline.now() >= held_until, "the lease of {name} ended early: {error}");
            return None;
        }
        Err(error) => panic!("{error}"),
    }
    let ttl = Duration::from_secs(granted.ttl_seconds.unsigned_abs());
    let attached = timeline.now();
    let renewals = vec![Renewal { sent, ended: attached, ttl: Some(ttl) }];
    Some((Lease { name: name.to_owned(), ttl, renewals, attached }, granted.lease_id))
}

/// Renews a lease, each time after some hundredths of its time.
async fn renew(client: &KvClient, id: i64, after: Vec<u32>, timeline: &Timeline, held: &Mutex<Held>) {
    let ttl = held.lock().unwrap().lease.ttl;
    for hundredths in after {
        tokio::time::sleep(ttl * hundredths / 100).await;
        let sent = timeline.now();
        let outcome = client.keep_alive(id).await;
        let ended = timeline.now();
        let mut held = held.lock().unwrap();
        match outcome {
            Ok(seconds) => {
                let ttl = Some(Duration::from_secs(seconds.unsigned_abs()));
                held.lease.renewals.push(Renewal { sent, ended, ttl });
            }
            Err(ClientError::Rejected(Fault::NoLease(_))) => {
                return held.reads.push(Read { began: sent, ended, is_there: false });
            }
            Err(ClientError::Unavailable(_)) => {
                held.lease.renewals.push(Renewal { sent, ended, ttl: None });
            }
            Err(error) => panic!("{error}"),
        }
    }
}

async fn read_until_gone(client: &KvClient, name: &str, timeline: &Timeline, held: &Mutex<Held>) {
    let started = timeline.now();
    loop {
        let began = timeline.now();
        if let Ok(found) = client.get(name).await {
            let read = Read { began, ended: timeline.now(), is_there: found.is_some() };
            held.lock().unwrap().reads.push(read);
            if !read.is_there {
                return;
            }
        }
        assert!(timeline.now() < started + GONE_MAX, "{name} is still there after {GONE_MAX:?}");
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
}

/// Far longer than any lease of a test can live.
const GONE_MAX: Duration = Duration::from_secs(120);
