//! `GET /snapshot`: a backup of the store over HTTP. A download that breaks off is resumed.
//!
//! The bytes are those of `Snapshot` of the service `Maintenance`. The copy that was downloaded last is kept for a while, so that a
//! client asks for the rest of it: with `Range: bytes=N-` and the `ETag` of its first response in `If-Range` (RFC 9110, section 13.1.5).

use std::{
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use bytes::Bytes;
use futures::StreamExt;
use http_body_util::StreamBody;
use hyper::{
    HeaderMap, Request, Response, StatusCode,
    body::{Frame, Incoming},
    header,
};
use kv_state_machine::StoreSnapshot;
use tokio::{runtime::Handle, sync::mpsc};
use tonic::{Status, body::Body};

use super::{
    Etcd, error, gateway, http,
    permissions::certificate_name,
    snapshot::{PIECES_MAX, Pieces, saved_bytes, until_stopped},
};
use crate::{
    call_log::{self, DOWNLOAD, Protocol},
    measure::code_name,
    routing::RoutingManager,
};

/// The copy that was downloaded last.
#[derive(Default)]
pub(crate) struct KeptCopy(Mutex<Option<Kept>>);

#[derive(Clone)]
struct Kept {
    /// Identifies the copy, as an entity tag without quotes.
    tag: String,
    copy: Arc<StoreSnapshot>,
    /// Number of downloads that were begun.
    downloads: u64,
}

impl KeptCopy {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Kept>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, tag: &str) -> Option<Arc<StoreSnapshot>> {
        self.lock().as_ref().filter(|kept| kept.tag == tag).map(|kept| kept.copy.clone())
    }

    /// Keeps a copy in place of the previous one, and counts a download of it.
    fn keep(&self, tag: &str, copy: &Arc<StoreSnapshot>) {
        let mut kept = self.lock();
        let downloads = kept.as_ref().filter(|kept| kept.tag == tag).map_or(0, |kept| kept.downloads);
        *kept = Some(Kept { tag: tag.to_owned(), copy: copy.clone(), downloads: downloads + 1 });
    }

    /// Number of downloads of a copy; `None` if it is not kept.
    fn downloads(&self, tag: &str) -> Option<u64> {
        self.lock().as_ref().filter(|kept| kept.tag == tag).map(|kept| kept.downloads)
    }

    /// Gives the space of a copy back that has had no more downloads.
    fn expire(&self, tag: &str, downloads: u64) {
        self.lock().take_if(|kept| kept.tag == tag && kept.downloads == downloads);
    }

    fn clear(&self) {
        self.lock().take();
    }
}

/// Serves a download to a client that has the role `root`, if users are checked.
pub(super) async fn answer(etcd: Etcd, request: &Request<Incoming>) -> Response<Body> {
    let record = etcd.record(Protocol::Http, DOWNLOAD);
    let admitted = async {
        let name = certificate_name(request.extensions());
        let etcd = etcd.admit("etcdserverpb.Maintenance", "Snapshot", request.headers(), name).await?;
        download(&etcd, request.headers()).await
    };
    let (downloaded, record) = call_log::recorded(record, admitted).await;
    let (response, result) = match downloaded {
        Ok(response) => (response, call_log::OK),
        Err(status) => (gateway::failed(&status), code_name(status.code())),
    };
    if let Some(record) = record {
        record.end(result);
    }
    response
}

async fn download(etcd: &Etcd, headers: &HeaderMap) -> Result<Response<Body>, Status> {
    let database = etcd.data()?;
    let kept = etcd.router().kept_copy();
    let resumed = resumption(headers).and_then(|(tag, from)| Some((kept.find(&tag)?, tag, from)));
    let (copy, tag, from) = match resumed {
        Some(resumed) => resumed,
        None => {
            // The number of copies is limited: another one would wait for the kept one.
            kept.clear();
            let copy = Arc::new(database.snapshot().await.map_err(error::of_read)?);
            (copy, draw_tag()?, 0)
        }
    };
    etcd.check_root_again()?;
    let bytes = saved_bytes(copy.size_bytes());
    if from >= bytes {
        let mut response = http::respond(StatusCode::RANGE_NOT_SATISFIABLE, "text/plain", String::new());
        insert(response.headers_mut(), header::CONTENT_RANGE, format!("bytes */{bytes}"));
        return Ok(response);
    }
    let (sender, receiver) = mpsc::channel(PIECES_MAX);
    let message = |blob: Bytes, _| Ok::<_, Status>(Frame::data(blob));
    let mut out = Pieces::new(copy.size_bytes(), from, sender, message, Handle::current());
    let failure = out.failure();
    kept.keep(&tag, &copy);
    let (router, own_tag) = (Arc::downgrade(&etcd.router), tag.clone());
    tokio::task::spawn_blocking(move || {
        let written = copy.write_to(&mut out).and_then(|()| out.end());
        if let Err(error) = written {
            tracing::warn!(%error, "a backup was not sent to its end; its client can resume it for {} s", KEEP.as_secs());
            out.fail(Status::unavailable(error.to_string()));
        }
        drop((out, copy));
        Handle::current().spawn(give_back(router, own_tag));
    });
    let frames = until_stopped(receiver, failure, etcd.stop.clone());
    let mut response = Response::new(Body::new(StreamBody::new(frames.boxed())));
    let all = response.headers_mut();
    insert(all, header::CONTENT_TYPE, "application/octet-stream".to_owned());
    insert(all, header::CONTENT_LENGTH, (bytes - from).to_string());
    insert(all, header::ACCEPT_RANGES, "bytes".to_owned());
    insert(all, header::ETAG, format!("\"{tag}\""));
    if from > 0 {
        insert(all, header::CONTENT_RANGE, format!("bytes {from}-{}/{bytes}", bytes - 1));
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    Ok(response)
}

/// Draws the tag of a copy.
fn draw_tag() -> Result<String, Status> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|error| Status::internal(error.to_string()))?;
    Ok(format!("{:016x}", u64::from_be_bytes(bytes)))
}

/// Gives the space of a copy back, [`KEEP`] after a download of it has ended, unless another one has begun.
async fn give_back(router: Weak<RoutingManager>, tag: String) {
    let downloads = router.upgrade().and_then(|router| router.kept_copy().downloads(&tag));
    tokio::time::sleep(KEEP).await;
    if let (Some(router), Some(downloads)) = (router.upgrade(), downloads) {
        router.kept_copy().expire(&tag, downloads);
    }
}

/// Tag and position of a request for the rest of a download.
fn resumption(headers: &HeaderMap) -> Option<(String, u64)> {
    let text = |name| headers.get(name)?.to_str().ok();
    let tag = text(header::IF_RANGE)?.strip_prefix('"')?.strip_suffix('"')?;
    let from = text(header::RANGE)?.strip_prefix("bytes=")?.strip_suffix('-')?;
    Some((tag.to_owned(), from.parse().ok()?))
}

fn insert(headers: &mut HeaderMap, name: header::HeaderName, value: String) {
    if let Ok(value) = header::HeaderValue::try_from(value) {
        headers.insert(name, value);
    }
}

/// Time for which the copy that was downloaded last is kept after its download has ended. It keeps disk space that later changes would free.
const KEEP: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resumption_needs_tag_and_open_range() {
        let of = |tag: &'static str, range: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::IF_RANGE, header::HeaderValue::from_static(tag));
            headers.insert(header::RANGE, header::HeaderValue::from_static(range));
            resumption(&headers)
        };
        assert_eq!(of("\"a1\"", "bytes=512-"), Some(("a1".to_owned(), 512)));
        for (tag, range) in [
            ("a1", "bytes=512-"),
            ("\"a1\"", "bytes=512-600"),
            ("\"a1\"", "bytes=-5"),
            ("\"a1\"", "pages=1-"),
        ] {
            assert_eq!(of(tag, range), None, "{tag} {range}");
        }
        assert_eq!(resumption(&HeaderMap::new()), None);
    }
}
