//! The service `KV`.

use futures::stream::BoxStream;
use kv_etcd_api::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
    RangeRequest, RangeResponse, RangeStreamResponse, TxnRequest, TxnResponse, kv_server::Kv,
};
use kv_state_machine::{KvOperation, KvResult, Range, SortBy};
use prost::Message;
use tonic::{Request, Response, Status};

use super::{Etcd, convert, error, txn, unexpected};

type Result<T> = std::result::Result<Response<T>, Status>;

#[tonic::async_trait]
impl Kv for Etcd {
    async fn range(&self, request: Request<RangeRequest>) -> Result<RangeResponse> {
        let request = request.into_inner();
        let serializable = request.serializable;
        let answer = self.read(convert::range(request)?, serializable).await?;
        match answer.result {
            KvResult::Range(found) => Ok(Response::new(convert::found(found, self.header(answer.revision)))),
            other => Err(unexpected(&other)),
        }
    }

    type RangeStreamStream = BoxStream<'static, std::result::Result<RangeStreamResponse, Status>>;

    async fn range_stream(&self, request: Request<RangeRequest>) -> Result<Self::RangeStreamStream> {
        let request = request.into_inner();
        let is_filtered = [
            request.min_mod_revision,
            request.max_mod_revision,
            request.min_create_revision,
            request.max_create_revision,
        ]
        .iter()
        .any(|bound| *bound != 0);
        let serializable = request.serializable;
        let KvOperation::Range(range) = convert::range(request)? else { return Err(error::empty_key()) };
        if is_filtered || range.descending || range.sort.by != SortBy::Key {
            return Err(Status::unimplemented("etcdserver: RangeStream has no sort orders and no filters"));
        }
        let pages = Pages { etcd: self.clone(), range, serializable, sent: 0, count: None };
        Ok(Response::new(Box::pin(futures::stream::try_unfold(Some(pages), Pages::next))))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<PutResponse> {
        let request = request.into_inner();
        self.check_size(&request)?;
        let answer = self.write(convert::put(request)?).await?;
        match answer.result {
            KvResult::Put(done) => {
                let (header, prev_kv) =
                    (Some(self.header(answer.revision)), done.previous.map(convert::key_value));
                Ok(Response::new(PutResponse { header, prev_kv }))
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn delete_range(&self, request: Request<DeleteRangeRequest>) -> Result<DeleteRangeResponse> {
        let answer = self.write(convert::delete(request.into_inner())?).await?;
        match answer.result {
            KvResult::Delete(deleted) => Ok(Response::new(DeleteRangeResponse {
                header: Some(self.header(answer.revision)),
                deleted: super::signed(deleted.deleted),
                prev_kvs: deleted.previous.into_iter().flatten().map(convert::key_value).collect(),
            })),
            other => Err(unexpected(&other)),
        }
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<TxnResponse> {
        let request = request.into_inner();
        self.check_size(&request)?;
        let serializable = txn::is_serializable(&request);
        let operation = txn::operation(request, self.database().limits().transaction_operations_max)?;
        let answer = if operation.is_read_only() {
            self.read(operation, serializable).await?
        } else {
            self.write(operation).await?
        };
        match answer.result {
            KvResult::Txn(done) => {
                Ok(Response::new(txn::done(done, answer.revision, self.header(answer.revision))))
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Physical or not: what was compacted cannot be seen any more, and is removed from the disk beside other work.
    async fn compact(&self, request: Request<CompactionRequest>) -> Result<CompactionResponse> {
        let revision = request.into_inner().revision;
        if revision <= 0 {
            self.check_alarms(false)?;
            // Of a store that was never compacted nothing is to be done.
            return match (revision, self.database().compacted()) {
                (0, 0) => Ok(Response::new(CompactionResponse { header: Some(self.header_now()?) })),
                _ => Err(error::compacted()),
            };
        }
        let revision = revision.unsigned_abs();
        let answer = self.write(KvOperation::Compact { revision }).await?;
        Ok(Response::new(CompactionResponse { header: Some(self.header(answer.revision)) }))
    }
}

impl Etcd {
    fn check_size(&self, request: &impl Message) -> std::result::Result<(), Status> {
        let is_too_large = request.encoded_len() > self.limits.request_bytes;
        if is_too_large { Err(error::request_too_large()) } else { Ok(()) }
    }
}

/// A range in pages, all at one revision.
struct Pages {
    etcd: Etcd,
    range: Range,
    serializable: bool,
    sent: u64,
    /// How many keys the range has; known with the first page.
    count: Option<u64>,
}

impl Pages {
    async fn next(
        pages: Option<Self>,
    ) -> std::result::Result<Option<(RangeStreamResponse, Option<Self>)>, Status> {
        let Some(mut pages) = pages else { return Ok(None) };
        let limit = pages.range.limit;
        let left = if limit == 0 { u64::MAX } else { limit - pages.sent };
        let page = Range { limit: left.min(PAGE_KEYS), ..pages.range.clone() };
        // After the first page the revision is given, and any node that has it will do.
        let serializable = pages.serializable || pages.count.is_some();
        let answer = pages.etcd.read(KvOperation::Range(page), serializable).await?;
        let KvResult::Range(mut found) = answer.result else { return Err(unexpected(&answer.result)) };
        let is_first = pages.count.is_none();
        let count = *pages.count.get_or_insert(found.count);
        if is_first && pages.range.revision == 0 {
            pages.range.revision = answer.revision;
        }
        pages.sent += found.kvs.len() as u64;
        let is_last = !found.more || pages.sent == limit;
        if let Some(last) = found.kvs.last() {
            pages.range.key = [&last.key[..], &[0]].concat().into();
        }
        found.count = 0;
        let more = std::mem::take(&mut found.more);
        let mut response = convert::found(found, pages.etcd.header(answer.revision));
        // Header and count are true of the whole, and come with its end.
        if is_last {
            (response.count, response.more) = (super::signed(count), more);
        } else {
            response.header = None;
        }
        let response = RangeStreamResponse { range_response: Some(response) };
        Ok(Some((response, (!is_last).then_some(pages))))
    }
}

/// Keys in one message of a stream.
const PAGE_KEYS: u64 = 1000;
