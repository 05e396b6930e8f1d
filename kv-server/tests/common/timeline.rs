//! The clock that all clients of a test share, and the times in which leaders changed.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use consensus_testkit::lease_history::Disturbance;
use futures::future::join_all;
use kv_store_client::KvClient;
use tokio::{task::JoinHandle, time::timeout};

/// A clock that never goes back, and what disturbed the cluster.
#[derive(Debug)]
pub struct Timeline {
    start: Instant,
    disturbances: Mutex<Vec<Disturbance>>,
}

impl Timeline {
    pub fn start() -> Arc<Self> {
        Arc::new(Self { start: Instant::now(), disturbances: Mutex::default() })
    }

    /// Time since the start.
    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Records a disturbance that ends now.
    pub fn disturbed_since(&self, from: Duration) {
        let disturbance = Disturbance { from, to: self.now() };
        self.disturbances.lock().unwrap().push(disturbance);
    }

    /// Disturbances in the order of time.
    pub fn disturbances(&self) -> Vec<Disturbance> {
        let mut disturbances = self.disturbances.lock().unwrap().clone();
        disturbances.sort_by_key(|disturbance| disturbance.from);
        disturbances
    }

    /// Records as a disturbance each change of leaders that servers report, each time without a leader, and each time in
    /// which this machine was too busy to look, until the task is aborted.
    pub fn observe(self: &Arc<Self>, ports: &[u16]) -> JoinHandle<()> {
        let (timeline, ports) = (self.clone(), ports.to_vec());
        tokio::spawn(async move {
            let clients: Vec<KvClient> = ports.iter().map(|port| super::client(&[*port])).collect();
            let mut known = None;
            let mut looked = timeline.now();
            loop {
                tokio::time::sleep(LOOK).await;
                let leads = async |(client, port): (&KvClient, &u16)| {
                    let endpoint = format!("127.0.0.1:{port}").parse().unwrap();
                    let status = timeout(ANSWER_MAX, client.status_of(&endpoint)).await.ok()?.ok()?;
                    (status.role == "leader").then_some(status.header.term)
                };
                let terms = join_all(clients.iter().zip(&ports).map(leads)).await;
                let term = terms.into_iter().flatten().max();
                let is_late = timeline.now() > looked + LOOK + ANSWER_MAX + LATE;
                if term.is_none() || term != known || is_late {
                    timeline.disturbed_since(looked);
                }
                (known, looked) = (term, timeline.now());
            }
        })
    }
}

/// How often servers are asked who leads.
const LOOK: Duration = Duration::from_millis(40);
/// A server that takes longer is taken for silent.
const ANSWER_MAX: Duration = Duration::from_millis(250);
/// A delay that shows that the machine is too busy for times to be measured.
const LATE: Duration = Duration::from_millis(150);
