//! `RangeStream` of the service `KV`: a range in pages, all at one revision.

use std::time::Duration;

use futures::stream::BoxStream;
use kv_etcd_api::etcdserverpb::{
    RangeRequest, RangeResponse, RangeStreamResponse,
    range_request::{SortOrder, SortTarget},
};
use kv_state_machine::{KvOperation, Range, RangePage, RangePages, Sort};
use prost::Message;
use tokio::{
    sync::{mpsc, watch as channel},
    time::timeout,
};
use tonic::{Response, Status};

use super::{Etcd, convert, error, signed};
use crate::{answers::Room, frontend::stopped};

type Answer = Result<RangeStreamResponse, Status>;

impl Etcd {
    /// Starts to send a range.
    pub(super) async fn stream_range(
        &self,
        request: RangeRequest,
    ) -> Result<Response<BoxStream<'static, Answer>>, Status> {
        let serializable = request.serializable;
        let refusal = refusal_of(&request);
        let KvOperation::Range(range) = convert::range(request)? else { return Err(error::empty_key()) };
        let range = Range { sort: Sort::default(), ..range };
        refusal.map_or(Ok(()), Err)?;
        let pages = self.range_pages(range, serializable).await?;
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(send(self.clone(), pages, sender));
        let sent = Sent { receiver: Some(receiver), stop: self.stop.clone(), room: None };
        Ok(Response::new(Box::pin(futures::stream::unfold(sent, Sent::next))))
    }
}

/// The messages of a stream, on the way to their client.
struct Sent {
    /// `None` after the last message.
    receiver: Option<mpsc::Receiver<(Answer, Room)>>,
    stop: channel::Receiver<bool>,
    /// Room of the message that was taken last.
    room: Option<Room>,
}

impl Sent {
    async fn next(mut self) -> Option<(Answer, Self)> {
        // The message before is written, but for what HTTP/2 buffers for a client that reads slowly.
        self.room = None;
        let receiver = self.receiver.as_mut()?;
        let taken = tokio::select! {
            taken = receiver.recv() => taken,
            // A client must not take what was sent until now for all.
            () = stopped(&mut self.stop) => return Some((Err(error::stopped()), self.ended())),
        };
        let Some((answer, mut room)) = taken else { return Some((Err(given_up()), self.ended())) };
        room.note_unread();
        self.room = Some(room);
        if answer.as_ref().map_or(true, is_last) {
            return Some((answer, self.ended()));
        }
        Some((answer, self))
    }

    fn ended(self) -> Self {
        Self { receiver: None, ..self }
    }
}

/// Why a request is not served, in etcd's words.
fn refusal_of(request: &RangeRequest) -> Option<Status> {
    let is_ascending = request.sort_order == i32::from(SortOrder::Ascend);
    let is_in_order_of_keys = request.sort_order == i32::from(SortOrder::None)
        || (is_ascending && request.sort_target == i32::from(SortTarget::Key));
    if !is_in_order_of_keys {
        return Some(Status::unimplemented("RangeStream does not support custom sort orders"));
    }
    let bounds = [
        request.min_mod_revision,
        request.max_mod_revision,
        request.min_create_revision,
        request.max_create_revision,
    ];
    let is_filtered = bounds.iter().any(|bound| *bound != 0);
    is_filtered.then(|| Status::unimplemented("RangeStream does not support revision filters"))
}

/// Sends the pages as fast as the client takes them.
async fn send(etcd: Etcd, mut pages: RangePages, sender: mpsc::Sender<(Answer, Room)>) {
    loop {
        let mut room = etcd.budget.room();
        let read = async {
            room.reserve(RangePages::PAGE_BYTES_MAX).await;
            pages.next().await
        };
        let page = tokio::select! {
            page = read => page,
            () = sender.closed() => return,
        };
        let answer = match page {
            Ok(Some(page)) => Ok(converted(&etcd, page, pages.revision())),
            Ok(None) => return,
            Err(failure) => Err(error::of_read(failure)),
        };
        room.settle(answer.as_ref().map_or(0, Message::encoded_len));
        let is_end = answer.as_ref().map_or(true, is_last);
        match timeout(STALL_MAX, sender.send((answer, room))).await {
            Ok(Ok(())) if !is_end => {}
            _ => return,
        }
    }
}

/// A page as a message. Header and count are true of the whole, and come with its end.
fn converted(etcd: &Etcd, page: RangePage, revision: u64) -> RangeStreamResponse {
    let RangePage { kvs, end } = page;
    let range_response = RangeResponse {
        header: end.map(|_| etcd.header(revision)),
        kvs: kvs.into_iter().map(convert::key_value).collect(),
        more: end.is_some_and(|end| end.more),
        count: end.map_or(0, |end| signed(end.count)),
    };
    RangeStreamResponse { range_response: Some(range_response) }
}

fn is_last(response: &RangeStreamResponse) -> bool {
    response.range_response.as_ref().is_none_or(|response| response.header.is_some())
}

fn given_up() -> Status {
    let seconds = STALL_MAX.as_secs();
    Status::unavailable(format!(
        "etcdserver: the client took nothing for {seconds} s; request the range again"
    ))
}

/// A client that takes nothing for so long is given up: its pages keep a revision on disk.
const STALL_MAX: Duration = Duration::from_secs(60);
