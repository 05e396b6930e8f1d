//! Calls that require a leader: clients say so with the metadata `hasleader: true`.
//!
//! As in etcd, a node without a leader refuses such a call, whatever the call is, and a stream ends when there has been no
//! leader for a while.

use futures::FutureExt;
use http_body_util::{BodyExt, StreamBody};
use hyper::{
    HeaderMap, Response,
    body::{Body as _, Frame},
};
use tonic::{Status, body::Body};

use super::{Etcd, error};
use crate::leaderless::leaderless;

/// Whether a call with these headers requires a leader.
pub(super) fn is_required_by(headers: &HeaderMap) -> bool {
    headers.get(HAS_LEADER).is_some_and(|value| value == "true")
}

/// Ends an answer that is a stream when this node has had no leader for a while.
pub(super) fn end_without_leader(etcd: &Etcd, response: Response<Body>) -> Response<Body> {
    if response.headers().contains_key(Status::GRPC_STATUS) || response.body().is_end_stream() {
        return response; // It has ended.
    }
    let leaderless = leaderless(etcd.database().status()).boxed();
    response.map(|body| {
        let frames = futures::stream::unfold(Some((body, leaderless)), |state| async move {
            let (mut body, mut leaderless) = state?;
            tokio::select! {
                biased;
                frame = body.frame() => Some((frame?, Some((body, leaderless)))),
                () = &mut leaderless => Some((Ok(trailers(&error::no_leader())), None)),
            }
        });
        Body::new(StreamBody::new(frames))
    })
}

fn trailers(status: &Status) -> Frame<bytes::Bytes> {
    let mut trailers = HeaderMap::new();
    // It fails only for messages that are no text of a header.
    let _ = status.add_header(&mut trailers);
    Frame::trailers(trailers)
}

/// Name of the metadata.
pub(super) const HAS_LEADER: &str = "hasleader";
