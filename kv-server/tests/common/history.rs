//! Clients that write down what they asked and what they were told; one history for each key.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use consensus_testkit::linearizability::{self, CheckResult, Model, check, explain};
use kv_store_client::{
    ClientError, KvClient,
    idl::{
        self, Compare, CompareResult, CompareTarget, DeleteRequest, OperationResponse, PutRequest,
        RangeRequest, TxnRequest,
    },
};
use rand::{Rng, SeedableRng, rngs::SmallRng};

/// Content of a key: a value that no other write has, and the number of writes since its creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cell {
    pub value: u64,
    pub version: i64,
}

/// Request of a client for a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Get,
    Put(u64),
    Delete,
    /// Puts the value if the key has the version; 0: if it is not there.
    CompareAndSet(i64, u64),
}

/// Response to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Content of the key before.
    Was(Option<Cell>),
    /// A compare-and-set was done.
    Set,
}

/// One key of the store.
pub struct Key;

impl Model for Key {
    type State = Option<Cell>;
    type Call = Call;
    type Response = Answer;

    fn initial(&self) -> Option<Cell> {
        None
    }

    fn apply(&self, state: &Option<Cell>, call: &Call, answer: Option<&Answer>) -> Option<Option<Cell>> {
        let version = state.map_or(0, |cell| cell.version);
        let put = |value| Some(Cell { value, version: version + 1 });
        let (after, says) = match *call {
            Call::Get => (*state, Answer::Was(*state)),
            Call::Put(value) => (put(value), Answer::Was(*state)),
            Call::Delete => (None, Answer::Was(*state)),
            Call::CompareAndSet(expected, value) if expected == version => (put(value), Answer::Set),
            Call::CompareAndSet(..) => (*state, Answer::Was(*state)),
        };
        answer.is_none_or(|answer| *answer == says).then_some(after)
    }
}

pub type Operation = linearizability::Operation<Call, Answer>;

/// All histories, as they are written.
#[derive(Default)]
pub struct Histories {
    keys: Mutex<BTreeMap<String, Vec<Operation>>>,
    /// Moments: drawn before a call is sent and after its answer came, so that their order is that of time.
    clock: AtomicU64,
    values: AtomicU64,
    answered: Mutex<Answered>,
}

#[derive(Clone, Copy, Default)]
struct Answered {
    count: u64,
    last: Option<Instant>,
    longest_pause: Duration,
}

impl Histories {
    fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    /// Executes one call and writes down what comes of it; the answer, if there is one.
    pub async fn perform(&self, client: &KvClient, id: u64, key: &str, call: Call) -> Option<Answer> {
        let began = self.now();
        let result = execute(client, key, call).await;
        let ended = match result {
            Ok(answer) => Some((self.now(), answer)),
            // A read that came to nothing says nothing. And of a write it was said that it was not done: if it was after
            // all, a later read sees a value that nobody wrote.
            Err(ClientError::Unavailable(_)) => return None,
            Err(ClientError::Unknown(_)) => None,
            Err(error) => panic!("{call:?} of {key}: {error}"),
        };
        let operation = Operation { client: id, call, began, ended };
        self.keys.lock().unwrap().entry(key.to_owned()).or_default().push(operation);
        let (_, answer) = ended?;
        let mut answered = self.answered.lock().unwrap();
        let now = Instant::now();
        let pause = answered.last.map_or(Duration::ZERO, |last| now - last);
        *answered = Answered {
            count: answered.count + 1,
            last: Some(now),
            longest_pause: answered.longest_pause.max(pause),
        };
        Some(answer)
    }

    /// How many calls were answered.
    pub fn answered(&self) -> u64 {
        self.answered.lock().unwrap().count
    }

    /// The longest time in which no client had an answer.
    pub fn longest_pause(&self) -> Duration {
        self.answered.lock().unwrap().longest_pause
    }

    /// One client: any call on any of the keys, again and again, until it is told to stop. Keys are chosen again for each call.
    pub async fn client(
        &self,
        client: KvClient,
        id: u64,
        seed: u64,
        keys: &Mutex<Vec<String>>,
        stop: &AtomicBool,
    ) {
        let mut random = SmallRng::seed_from_u64(seed);
        // The version that was seen last of each key, for something to compare with.
        let mut seen: BTreeMap<String, i64> = BTreeMap::new();
        while !stop.load(Ordering::Relaxed) {
            let key = {
                let keys = keys.lock().unwrap();
                keys[random.random_range(0..keys.len())].clone()
            };
            let value = self.values.fetch_add(1, Ordering::Relaxed);
            let call = match random.random_range(0..10) {
                0..4 => Call::Get,
                4..7 => Call::Put(value),
                7..9 => Call::CompareAndSet(seen.get(&key).copied().unwrap_or(0), value),
                _ => Call::Delete,
            };
            match (call, self.perform(&client, id, &key, call).await) {
                (Call::Get | Call::CompareAndSet(..), Some(Answer::Was(cell))) => {
                    seen.insert(key, cell.map_or(0, |cell| cell.version));
                }
                (Call::CompareAndSet(version, _), Some(Answer::Set)) => {
                    seen.insert(key, version + 1);
                }
                _ => {}
            }
            // So that histories stay short enough to be checked.
            tokio::time::sleep(Duration::from_millis(random.random_range(5..30))).await;
        }
    }

    pub fn keys(&self) -> Vec<String> {
        self.keys.lock().unwrap().keys().cloned().collect()
    }

    /// Checks every history; says how many operations there were, and how many of them without an answer.
    pub fn check(&self) -> (usize, usize) {
        let (mut operations, mut unknown) = (0, 0);
        for (key, history) in &*self.keys.lock().unwrap() {
            let result = check(&Key, history, STEPS_MAX);
            assert_eq!(result, CheckResult::Linearizable, "{key}: {}", explain(history, &result));
            operations += history.len();
            unknown += history.iter().filter(|operation| operation.ended.is_none()).count();
        }
        (operations, unknown)
    }
}

async fn execute(client: &KvClient, key: &str, call: Call) -> Result<Answer, ClientError> {
    let name = key.as_bytes().to_vec();
    let put = |value: u64, return_previous| PutRequest {
        return_previous: Some(return_previous),
        ..PutRequest::of(name.clone(), value.to_string())
    };
    Ok(match call {
        Call::Get => Answer::Was(client.get(key).await?.map(cell)),
        Call::Put(value) => Answer::Was(client.put_with(put(value, true)).await?.previous.map(cell)),
        Call::Delete => {
            let response = client.delete_range(DeleteRequest::new(name, None, true, None, None)).await?;
            let previous = response.previous.unwrap_or_default().pop().map(cell);
            assert_eq!(response.deleted, i64::from(previous.is_some()));
            Answer::Was(previous)
        }
        Call::CompareAndSet(version, value) => {
            let has_version =
                Compare::new(name.clone(), CompareTarget::VERSION, CompareResult::EQUAL, version, None, None);
            let read = RangeRequest::of(name.clone(), None);
            let (set, read) = (idl::Operation::Put(put(value, false)), idl::Operation::Range(read));
            let mut response = client
                .txn(TxnRequest::new(vec![has_version], vec![set], vec![read], None, None, None))
                .await?;
            match response.responses.pop() {
                _ if response.succeeded => Answer::Set,
                Some(OperationResponse::Range(mut found)) => Answer::Was(found.kvs.pop().map(cell)),
                other => panic!("{other:?}"),
            }
        }
    })
}

pub fn cell(kv: idl::KeyValue) -> Cell {
    let value = String::from_utf8(kv.value).unwrap().parse().unwrap();
    Cell { value, version: kv.version }
}

/// Shared by the clients of a test.
pub type Shared = Arc<Histories>;
const STEPS_MAX: u64 = 20_000_000;
