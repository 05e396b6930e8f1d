//! Keys and values.

use kv_etcd_api::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
    compare::{CompareResult, CompareTarget, TargetUnion},
    range_request::{SortOrder, SortTarget},
    request_op::Request,
    response_op::Response,
};
use kv_store_client::KvClient as ThriftClient;
use tonic::Code;

use super::clients::{Alone, all, get, keys, put, refusal};

#[tokio::test]
async fn puts_gets_and_deletes_answer_with_revisions_and_what_was_there() {
    let alone = Alone::start().await;
    let mut kv = alone.kv().await;
    let first = kv.put(put("a", "1")).await.unwrap().into_inner();
    assert_eq!((first.header.unwrap().revision, first.prev_kv), (2, None));
    let second = kv.put(PutRequest { prev_kv: true, ..put("a", "2") }).await.unwrap().into_inner();
    assert_eq!(second.prev_kv.unwrap().value, "1");
    let found = kv.range(get("a")).await.unwrap().into_inner();
    let header = found.header.unwrap();
    assert!(header.cluster_id != 0 && header.member_id != 0);
    assert_eq!((header.revision, found.count, found.more), (3, 1, false));
    let pair = &found.kvs[0];
    assert_eq!((pair.create_revision, pair.mod_revision, pair.version, pair.lease), (2, 3, 2, 0));
    let before = kv.range(RangeRequest { revision: 2, ..get("a") }).await.unwrap().into_inner();
    assert_eq!(before.kvs[0].value, "1");
    let delete = DeleteRangeRequest { key: "a".into(), range_end: "\0".into(), prev_kv: true };
    let deleted = kv.delete_range(delete).await.unwrap().into_inner();
    assert_eq!((deleted.deleted, deleted.prev_kvs[0].value.clone()), (1, "2".into()));
    let nothing =
        kv.delete_range(DeleteRangeRequest { key: "a".into(), ..Default::default() }).await.unwrap();
    assert_eq!((nothing.get_ref().deleted, nothing.into_inner().header.unwrap().revision), (0, 4));
}

#[tokio::test]
async fn ranges_are_sorted_filtered_and_limited_as_asked() {
    let alone = Alone::start().await;
    let mut kv = alone.kv().await;
    for (key, value) in [("a", "3"), ("b", "1"), ("c", "2"), ("b", "1")] {
        kv.put(put(key, value)).await.unwrap();
    }
    let mut ask = async |request: RangeRequest| {
        let found =
            kv.range(RangeRequest { range_end: "\0".into(), key: "a".into(), ..request }).await.unwrap();
        let found = found.into_inner();
        (keys(&found).concat(), found.more, found.count)
    };
    let sorted = |target: SortTarget, order: SortOrder, limit| RangeRequest {
        sort_target: target.into(),
        sort_order: order.into(),
        limit,
        ..Default::default()
    };
    let said = |keys: &str, more| (keys.to_owned(), more, 3);
    assert_eq!(ask(sorted(SortTarget::Key, SortOrder::Descend, 0)).await, said("cba", false));
    assert_eq!(ask(sorted(SortTarget::Value, SortOrder::Ascend, 0)).await, said("bca", false));
    assert_eq!(ask(sorted(SortTarget::Mod, SortOrder::Descend, 2)).await, said("bc", true));
    assert_eq!(ask(sorted(SortTarget::Create, SortOrder::Ascend, 0)).await, said("abc", false));
    assert_eq!(ask(sorted(SortTarget::Version, SortOrder::Descend, 1)).await, said("b", true));
    // Without an order the limit counts first.
    assert_eq!(ask(sorted(SortTarget::Value, SortOrder::None, 1)).await, said("b", true));
    assert_eq!(ask(RangeRequest { min_mod_revision: 4, ..Default::default() }).await, said("bc", false));
    assert_eq!(ask(RangeRequest { max_create_revision: 3, ..Default::default() }).await, said("ab", false));
    assert_eq!(ask(RangeRequest { count_only: true, ..Default::default() }).await, said("", false));
    let wrong = RangeRequest { sort_order: 9, ..get("a") };
    assert_eq!(
        refusal(kv.range(wrong).await),
        (Code::InvalidArgument, "etcdserver: invalid sort option".to_owned())
    );
}

#[tokio::test]
async fn range_without_a_limit_is_answered_whole_and_streamed_in_pieces() {
    let alone = Alone::start().await;
    let mut kv = alone.kv().await;
    let value = "v".repeat(1 << 20);
    for n in 0..6 {
        kv.put(put(&format!("large{n}"), &value)).await.unwrap();
    }
    let mut large = kv.clone().max_decoding_message_size(usize::MAX);
    let found = large.range(all()).await.unwrap().into_inner();
    assert_eq!((found.kvs.len(), found.count, found.more), (6, 6, false));
    for n in 0..2500 {
        let put =
            |n: usize| RequestOp { request: Some(Request::RequestPut(put(&format!("small{n:05}"), "v"))) };
        if n % 100 == 0 {
            let success = (n..n + 100).map(put).collect();
            kv.txn(TxnRequest { success, ..Default::default() }).await.unwrap();
        }
    }
    let small = RangeRequest { key: "small".into(), range_end: "smalm".into(), ..Default::default() };
    let mut stream = kv.range_stream(small.clone()).await.unwrap().into_inner();
    let (mut streamed, mut last) = (Vec::new(), None);
    while let Some(piece) = stream.message().await.unwrap() {
        let piece = piece.range_response.unwrap();
        assert!(last.is_none(), "header and count come with the end");
        streamed.extend(piece.kvs);
        last = piece.header.map(|header| (header.revision, piece.count));
    }
    let whole = kv.range(small).await.unwrap().into_inner();
    assert_eq!(last, Some((whole.header.unwrap().revision, 2500)));
    assert!(streamed == whole.kvs);
}

/// A client that lists and then watches goes on after the revision of the header.
#[tokio::test]
async fn streamed_range_is_of_one_revision_which_its_header_tells() {
    let alone = Alone::start().await;
    let mut kv = alone.kv().await;
    let value = "v".repeat(1 << 20);
    for n in 0..32 {
        kv.put(put(&format!("large{n:02}"), &value)).await.unwrap();
    }
    // More than the client has room for.
    let mut stream = kv.range_stream(all()).await.unwrap().into_inner();
    let first = stream.message().await.unwrap().unwrap().range_response.unwrap();
    assert!(first.header.is_none() && !first.kvs.is_empty());
    kv.put(put("large31", "after")).await.unwrap();
    let last = kv.put(put("later", "after")).await.unwrap().into_inner().header.unwrap().revision;
    kv.compact(CompactionRequest { revision: last, physical: true }).await.unwrap();
    let (mut kvs, mut end) = (first.kvs, None);
    while let Some(piece) = stream.message().await.unwrap() {
        let piece = piece.range_response.unwrap();
        kvs.extend(piece.kvs);
        end = piece.header.map(|header| (header.revision, piece.count, piece.more));
    }
    assert_eq!(end, Some((33, 32, false)));
    assert!(kvs.len() == 32 && kvs.iter().all(|kv| kv.value == value));
}

#[tokio::test]
async fn streamed_range_refuses_orders_and_filters_in_the_words_of_etcd() {
    let alone = Alone::start().await;
    let mut kv = alone.kv().await;
    let order = RangeRequest { sort_order: SortOrder::Descend.into(), ..all() };
    let said = |text: &str| (Code::Unimplemented, text.to_owned());
    assert_eq!(
        refusal(kv.range_stream(order).await),
        said("RangeStream does not support custom sort orders")
    );
    let filter = RangeRequest { max_create_revision: 1, ..all() };
    assert_eq!(refusal(kv.range_stream(filter).await), said("RangeStream does not support revision filters"));
    let plain = RangeRequest { sort_target: SortTarget::Value.into(), ..all() };
    assert!(kv.range_stream(plain).await.is_ok(), "without an order the target does not count");
    let compacted = RangeRequest { revision: 9, ..all() };
    assert_eq!(refusal(kv.range_stream(compacted).await).0, Code::OutOfRange);
}

#[tokio::test]
async fn transactions_compare_nest_and_answer_with_the_revisions_in_between() {
    let alone = Alone::start().await;
    let mut kv = alone.kv().await;
    kv.put(put("a", "1")).await.unwrap();
    let op = |request: Request| RequestOp { request: Some(request) };
    let holds = Compare {
        key: "a".into(),
        target: CompareTarget::Value.into(),
        result: CompareResult::Equal.into(),
        target_union: Some(TargetUnion::Value("1".into())),
        ..Default::default()
    };
    // Looked at before the outer one writes.
    let nested = TxnRequest {
        compare: vec![holds.clone()],
        success: vec![op(Request::RequestRange(get("a")))],
        failure: vec![],
    };
    let success = vec![
        op(Request::RequestRange(get("a"))),
        op(Request::RequestPut(put("a", "2"))),
        op(Request::RequestTxn(nested)),
    ];
    let txn = TxnRequest { compare: vec![holds], success, failure: vec![] };
    let done = kv.txn(txn).await.unwrap().into_inner();
    assert!(done.succeeded);
    let responses: Vec<_> = done.responses.into_iter().map(|response| response.response.unwrap()).collect();
    let [Response::ResponseRange(before), Response::ResponsePut(written), Response::ResponseTxn(inner)] =
        &responses[..]
    else {
        panic!("{responses:?}")
    };
    assert_eq!((before.header.unwrap().revision, before.kvs[0].value.clone()), (2, "1".into()));
    assert_eq!(written.header.unwrap().revision, 3);
    assert!(inner.succeeded);
    let Some(Response::ResponseRange(after)) = &inner.responses[0].response else { panic!("{inner:?}") };
    assert_eq!((after.header.unwrap().revision, after.kvs[0].value.clone()), (3, "2".into()));
}

#[tokio::test]
async fn errors_have_the_codes_and_texts_of_etcd() {
    let alone = Alone::start().await;
    let mut kv = alone.kv().await;
    let said = |code, text: &str| (code, format!("etcdserver: {text}"));
    assert_eq!(refusal(kv.put(put("", "v")).await), said(Code::InvalidArgument, "key is not provided"));
    let keep = PutRequest { ignore_value: true, ..put("a", "") };
    assert_eq!(refusal(kv.put(keep).await), said(Code::InvalidArgument, "key not found"));
    let both = PutRequest { ignore_value: true, ..put("a", "v") };
    assert_eq!(refusal(kv.put(both).await), said(Code::InvalidArgument, "value is provided"));
    let leased = PutRequest { lease: 5, ..put("a", "v") };
    assert_eq!(refusal(kv.put(leased).await), said(Code::NotFound, "requested lease not found"));
    let large = put("a", &"v".repeat(1_600_000));
    assert_eq!(refusal(kv.put(large).await), said(Code::InvalidArgument, "request is too large"));
    let larger = put("a", &"v".repeat(3_000_000));
    let (code, text) = refusal(kv.put(larger).await);
    assert_eq!(code, Code::ResourceExhausted, "{text}");
    kv.put(put("a", "1")).await.unwrap();
    kv.put(put("a", "2")).await.unwrap();
    let compacted = said(Code::OutOfRange, "mvcc: required revision has been compacted");
    let future = said(Code::OutOfRange, "mvcc: required revision is a future revision");
    assert_eq!(refusal(kv.range(RangeRequest { revision: 9, ..get("a") }).await), future);
    let compact = |revision| CompactionRequest { revision, physical: false };
    assert_eq!(refusal(kv.compact(compact(9)).await), future);
    kv.compact(compact(3)).await.unwrap();
    assert_eq!(refusal(kv.compact(compact(3)).await), compacted);
    assert_eq!(refusal(kv.range(RangeRequest { revision: 2, ..get("a") }).await), compacted);
}

#[tokio::test]
async fn thrift_and_grpc_see_one_store_on_one_port() {
    let alone = Alone::start().await;
    let mut kv = alone.kv().await;
    let thrift: ThriftClient = alone.server.client();
    thrift.put("a", "of thrift").await.unwrap();
    kv.put(put("b", "of grpc")).await.unwrap();
    assert_eq!(keys(&kv.range(all()).await.unwrap().into_inner()), ["a", "b"]);
    assert_eq!(thrift.get("b").await.unwrap().unwrap().value, b"of grpc");
}
