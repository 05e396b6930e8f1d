//! Clients of the API.

use std::time::{Duration, Instant};

use kv_etcd_api::{
    etcdserverpb::{
        PutRequest, RangeRequest, RangeResponse, WatchCreateRequest, WatchRequest, WatchResponse,
        kv_client::KvClient, lease_client::LeaseClient, watch_client::WatchClient,
        watch_request::RequestUnion,
    },
    mvccpb::{Event, event::EventType},
};
use tokio::{net::TcpStream, sync::mpsc, time::timeout};
use tonic::{Code, Request, Status, Streaming, transport::Channel};

use crate::common::Server;

/// In time for any machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) async fn channel(port: u16) -> Channel {
    let endpoint = Channel::from_shared(format!("http://127.0.0.1:{port}")).unwrap();
    endpoint.connect().await.expect("the server takes connections")
}

/// A server that stands alone, and its directory.
pub(crate) struct Alone {
    pub(crate) server: Server,
    _dir: tempfile::TempDir,
}

impl Alone {
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// The same with more arguments.
    pub(crate) async fn start_with(more: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let alone = Self { server: Server::standalone_with(dir.path(), more), _dir: dir };
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", alone.server.port)).await.is_err() {
            assert!(begun.elapsed() < PATIENCE, "it does not start: {}", alone.server.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        alone
    }

    pub(crate) async fn kv(&self) -> KvClient<Channel> {
        KvClient::new(channel(self.server.port).await)
    }

    pub(crate) async fn lease(&self) -> LeaseClient<Channel> {
        LeaseClient::new(channel(self.server.port).await)
    }
}

pub(crate) fn put(key: &str, value: &str) -> PutRequest {
    PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..Default::default() }
}

pub(crate) fn get(key: &str) -> RangeRequest {
    RangeRequest { key: key.to_owned().into(), ..Default::default() }
}

pub(crate) fn all() -> RangeRequest {
    RangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() }
}

pub(crate) fn keys(response: &RangeResponse) -> Vec<String> {
    response.kvs.iter().map(|kv| String::from_utf8(kv.key.to_vec()).unwrap()).collect()
}

pub(crate) fn refusal<T: std::fmt::Debug>(outcome: Result<T, Status>) -> (Code, String) {
    let status = outcome.expect_err("refused");
    (status.code(), status.message().to_owned())
}

/// A stream of watches.
pub(crate) struct Watching {
    requests: mpsc::Sender<WatchRequest>,
    answers: Streaming<WatchResponse>,
}

impl Watching {
    pub(crate) async fn open(port: u16) -> Self {
        Self::open_with(port, &[]).await
    }

    /// A stream with these metadata.
    pub(crate) async fn open_with(port: u16, metadata: &[(&'static str, &'static str)]) -> Self {
        let (requests, sent) = mpsc::channel(8);
        let sent = futures::stream::unfold(sent, |mut sent| async move {
            let request = sent.recv().await?;
            Some((request, sent))
        });
        let mut request = Request::new(sent);
        for (name, value) in metadata {
            request.metadata_mut().insert(*name, value.parse().unwrap());
        }
        let answers = WatchClient::new(channel(port).await).watch(request).await.unwrap().into_inner();
        Self { requests, answers }
    }

    pub(crate) async fn ask(&self, request: RequestUnion) {
        self.requests.send(WatchRequest { request_union: Some(request) }).await.unwrap();
    }

    /// Creates a watch; the answer.
    pub(crate) async fn create(&mut self, request: WatchCreateRequest) -> WatchResponse {
        self.ask(RequestUnion::CreateRequest(request)).await;
        let created = self.next().await;
        assert!(created.created, "{created:?}");
        created
    }

    pub(crate) async fn next(&mut self) -> WatchResponse {
        let next = timeout(PATIENCE, self.answers.message()).await.expect("an answer in time");
        next.unwrap().expect("the stream goes on")
    }

    /// How the stream ends.
    pub(crate) async fn end(&mut self) -> Result<(), Status> {
        loop {
            match timeout(PATIENCE, self.answers.message()).await.expect("an end in time") {
                Ok(Some(_)) => {}
                Ok(None) => return Ok(()),
                Err(status) => return Err(status),
            }
        }
    }

    /// Events until that of revision `last`.
    pub(crate) async fn events(&mut self, last: i64) -> Vec<Event> {
        let mut all: Vec<Event> = Vec::new();
        while all.last().is_none_or(|event| revision(event) < last) {
            let response = self.next().await;
            assert!(!response.canceled, "{response:?}");
            let newest = response.events.last().map(revision);
            let header = response.header.unwrap();
            assert!(
                newest.is_none_or(|newest| newest == header.revision),
                "who resumes after it misses nothing"
            );
            all.extend(response.events);
        }
        all
    }
}

pub(crate) fn watch(key: &str, range_end: &str) -> WatchCreateRequest {
    WatchCreateRequest {
        key: key.to_owned().into(),
        range_end: range_end.to_owned().into(),
        ..Default::default()
    }
}

pub(crate) fn revision(event: &Event) -> i64 {
    event.kv.as_ref().map_or(0, |kv| kv.mod_revision)
}

/// Revision, key, and value of an event; `None` for a deletion.
pub(crate) fn told(event: &Event) -> (i64, String, Option<String>) {
    let kv = event.kv.clone().unwrap();
    let text = |bytes: bytes::Bytes| String::from_utf8(bytes.to_vec()).unwrap();
    let value = (event.r#type == i32::from(EventType::Put)).then(|| text(kv.value));
    (kv.mod_revision, text(kv.key), value)
}
