//! Load, and what must be left of it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use kv_store_client::{ClientError, KvClient, idl::RangeRequest};

/// Clients that write all the while, each key once, and remember what was acknowledged.
pub struct Writers {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<BTreeMap<String, String>>>,
    last: Arc<Mutex<Instant>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Writers {
    pub fn start(client: &KvClient, count: usize) -> Self {
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(BTreeMap::new())));
        let last = Arc::new(Mutex::new(Instant::now()));
        let writer = |id: usize| {
            let (client, stop, acknowledged, last) =
                (client.clone(), stop.clone(), acknowledged.clone(), last.clone());
            tokio::spawn(async move {
                for n in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let (key, value) = (format!("writer-{id}/{n:06}"), format!("value {n} of {id}"));
                    match client.put(key.clone(), value.clone()).await {
                        Ok(_) => {
                            acknowledged.lock().unwrap().insert(key, value);
                            *last.lock().unwrap() = Instant::now();
                        }
                        // Neither counts for anything but the session's own promise: at most once.
                        Err(ClientError::Unknown(_) | ClientError::Unavailable(_)) => {}
                        Err(error) => panic!("{error}"),
                    }
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            })
        };
        let tasks = (0..count).map(writer).collect();
        Self { stop, acknowledged, last, tasks }
    }

    pub fn count(&self) -> usize {
        self.acknowledged.lock().unwrap().len()
    }

    /// Waits for an acknowledgement of a write begun after now; says how long after `since` it came.
    pub async fn acknowledged_again(&self, since: Instant) -> Duration {
        let before = self.count();
        // One more per writer than what may have been on its way.
        while self.count() < before + self.tasks.len() + 1 {
            assert!(since.elapsed() < Duration::from_secs(30), "no write was acknowledged for 30 s");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.last.lock().unwrap().duration_since(since)
    }

    pub async fn stop(self) -> BTreeMap<String, String> {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
        Arc::try_unwrap(self.acknowledged).unwrap().into_inner().unwrap()
    }
}

/// Every acknowledged write is there, and no write was applied twice.
pub async fn check(client: &KvClient, acknowledged: &BTreeMap<String, String>) {
    let mut found = BTreeMap::new();
    let mut from = b"writer-".to_vec();
    loop {
        let request = RangeRequest { limit: Some(1000), ..RangeRequest::of(from, Some(b"writer.".to_vec())) };
        let response = client.range(request).await.unwrap();
        for kv in &response.kvs {
            let (key, value) =
                (String::from_utf8(kv.key.clone()).unwrap(), String::from_utf8(kv.value.clone()).unwrap());
            assert_eq!(kv.version, 1, "{key} was written once and applied {} times", kv.version);
            found.insert(key, value);
        }
        match response.kvs.last() {
            Some(last) if response.more => from = [&last.key[..], &[0]].concat(),
            _ => break,
        }
    }
    let lost: Vec<&String> =
        acknowledged.iter().filter(|(key, value)| found.get(*key) != Some(value)).map(|(k, _)| k).collect();
    assert!(lost.is_empty(), "acknowledged and not there: {lost:?}");
}
