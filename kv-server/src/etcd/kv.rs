//! The service `KV`.

use futures::stream::BoxStream;
use kv_etcd_api::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
    RangeRequest, RangeResponse, RangeStreamResponse, TxnRequest, TxnResponse, kv_server::Kv,
};
use kv_state_machine::{KvOperation, KvResult};
use prost::Message;
use tonic::{Request, Response, Status};

use super::{
    Etcd, convert, error,
    held::{Answered, respond},
    txn, unexpected,
};

type Result<T> = std::result::Result<Response<T>, Status>;

#[tonic::async_trait]
impl Kv for Etcd {
    async fn range(&self, request: Request<RangeRequest>) -> Result<RangeResponse> {
        let request = request.into_inner();
        let serializable = request.serializable;
        let Answered { answer, room } = self.read_held(convert::range(request)?, serializable).await?;
        match answer.result {
            KvResult::Range(found) => Ok(respond(convert::found(found, self.header(answer.revision)), room)),
            other => Err(unexpected(&other)),
        }
    }

    type RangeStreamStream = BoxStream<'static, std::result::Result<RangeStreamResponse, Status>>;

    async fn range_stream(&self, request: Request<RangeRequest>) -> Result<Self::RangeStreamStream> {
        self.stream_range(request.into_inner()).await
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<PutResponse> {
        let request = request.into_inner();
        self.check_size(&request)?;
        let Answered { answer, room } = self.write_held(convert::put(request)?).await?;
        match answer.result {
            KvResult::Put(done) => {
                let (header, prev_kv) =
                    (Some(self.header(answer.revision)), done.previous.map(convert::key_value));
                Ok(respond(PutResponse { header, prev_kv }, room))
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn delete_range(&self, request: Request<DeleteRangeRequest>) -> Result<DeleteRangeResponse> {
        let Answered { answer, room } = self.write_held(convert::delete(request.into_inner())?).await?;
        match answer.result {
            KvResult::Delete(deleted) => {
                let response = DeleteRangeResponse {
                    header: Some(self.header(answer.revision)),
                    deleted: super::signed(deleted.deleted),
                    prev_kvs: deleted.previous.into_iter().flatten().map(convert::key_value).collect(),
                };
                Ok(respond(response, room))
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<TxnResponse> {
        let request = request.into_inner();
        self.check_size(&request)?;
        let serializable = txn::is_serializable(&request);
        let operation = txn::operation(request, self.database().limits().transaction_operations_max)?;
        let Answered { answer, room } = if operation.is_read_only() {
            self.read_held(operation, serializable).await?
        } else {
            self.write_held(operation).await?
        };
        match answer.result {
            KvResult::Txn(done) => {
                Ok(respond(txn::done(done, answer.revision, self.header(answer.revision)), room))
            }
            other => Err(unexpected(&other)),
        }
    }

    /// With and without `physical`, compacted versions are not readable any more, and a thread removes them from disk later.
    async fn compact(&self, request: Request<CompactionRequest>) -> Result<CompactionResponse> {
        let revision = request.into_inner().revision;
        if revision <= 0 {
            self.check_alarms(false)?;
            // A store that was never compacted accepts it without effect.
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
