//! What comes from other nodes.

use bytes::Bytes;
use consensus_core::{LogId, NodeId, SnapshotChunk, SnapshotMeta, SnapshotOutcome, Term};
use consensus_engine_raft::fuzzing::gather;
use consensus_transport_thrift::{
    framing,
    fuzzing::{
        Call, read_call, read_chunk_answer, read_hello_answer, read_receipt_and_description, write_call,
        write_chunk_answer,
    },
};
use futures::{StreamExt, executor::block_on};

use crate::bounded;

/// A connection to the consensus port: frames one after the other, each a call.
pub(crate) fn frames(stream: &[u8]) {
    let frame_bytes_max = 1 << 20;
    let frames = bounded(stream, 4, 80 << 10, || {
        let mut reader = framing::reader(stream, frame_bytes_max);
        let mut frames = Vec::new();
        while let Some(Ok(frame)) = block_on(reader.next()) {
            frames.push(frame);
        }
        frames
    });
    let framed = |frame: &[u8]| [&(frame.len() as u32).to_be_bytes()[..], frame].concat();
    let again: Vec<u8> = frames.iter().flat_map(|frame| framed(frame)).collect();
    assert!(stream.starts_with(&again), "frames are pieces of the stream");
    for frame in frames {
        message(&frame);
    }
}

/// A frame, as a call and as an answer to one.
pub(crate) fn message(frame: &[u8]) {
    if let Ok(call) = bounded(frame, PER_BYTE, BESIDES, || read_call(frame))
        && !matches!(call, Call::Unknown(_))
    {
        let written = write_call(call.clone()).expect("what was read can be written");
        assert_eq!(read_call(&written[4..]), Ok(call));
    }
    if let Ok((sequence, ack)) = bounded(frame, PER_BYTE, BESIDES, || read_chunk_answer(frame)) {
        let written = write_chunk_answer(sequence, ack).expect("what was read can be written");
        assert_eq!(read_chunk_answer(&written[4..]), Ok((sequence, ack)));
    }
    let _ = bounded(frame, PER_BYTE, BESIDES, || read_hello_answer(frame));
    let _ = bounded(frame, PER_BYTE, BESIDES, || read_receipt_and_description(frame));
}

/// The chunks of snapshots, of several streams and in any order; four bytes say of each whose it is, where it belongs, how
/// long it is and whether it is the last one.
pub(crate) fn chunks(mut script: &[u8]) {
    let (dir, mut chunks) = (std::env::temp_dir(), Vec::new());
    while let Some((&[who, offset, length, end], rest)) = script.split_first_chunk() {
        let (data, rest) = rest.split_at(rest.len().min(length.into()));
        script = rest;
        let last = match end {
            0 => Some(crc32c::crc32c(data)),
            1 => Some(0),
            _ => None,
        };
        let meta = SnapshotMeta { last: LogId::new(1, (who >> 4 & 1).into()), ..SnapshotMeta::default() };
        let (transfer, offset) = ((who >> 2 & 3).into(), offset.into());
        let data = Bytes::copy_from_slice(data);
        let chunk = SnapshotChunk { term: Term(1), transfer, meta, offset, data, last };
        chunks.push((NodeId((who & 3).into()), chunk));
    }
    for ((_, chunk), answer) in chunks.iter().zip(gather(&dir, chunks.clone())) {
        match answer {
            Ok(SnapshotOutcome::Continue { offset }) => {
                let sent: usize = chunks.iter().map(|(_, chunk)| chunk.data.len()).sum();
                assert!(offset <= sent as u64, "more than was sent");
            }
            Ok(outcome) => assert_eq!(outcome, SnapshotOutcome::Refused),
            Err((meta, whole)) => {
                assert_eq!(Some(crc32c::crc32c(&whole)), chunk.last);
                assert_eq!(whole.len() as u64, chunk.offset + chunk.data.len() as u64);
                assert_eq!(meta, chunk.meta);
            }
        }
    }
}

const PER_BYTE: usize = 64;
const BESIDES: usize = 32 << 10;
