//! Asks a node for its identity and history.

use std::{io, time::Duration};

use consensus_core::{ClusterId, Endpoint, NodeId, StorageId, TransportError};
use consensus_tls::Tls;
use tokio::{io::AsyncWriteExt, time::timeout};

use crate::{
    PeerIdentity, calls,
    connection::connect_with,
    convert::signed,
    framing, generated as wire,
    identity::{FORMATS, LocalNode, description_from_wire},
    receipts::next_frame,
};

/// Asks the node that listens at `endpoint` for its identity, within `time_limit`. The asking program need not be a node, so
/// [`PeerIdentity::knows_asker`] is `None`.
///
/// # Errors
/// No answer arrived, or the answer is not one of a node of this library.
pub async fn probe(
    endpoint: &Endpoint,
    tls: Option<&Tls>,
    time_limit: Duration,
) -> Result<PeerIdentity, TransportError> {
    ask(nobody(), None, endpoint, tls, time_limit).await
}

/// Like [`probe`], asking for the member of the probed node's cluster that other nodes reach at `member`: the answer has it as
/// [`PeerIdentity::member_at_endpoint`]. A node that was added under its endpoint learns its id from it.
///
/// # Errors
/// As [`probe`].
pub async fn find_member(
    endpoint: &Endpoint,
    member: &Endpoint,
    tls: Option<&Tls>,
    time_limit: Duration,
) -> Result<PeerIdentity, TransportError> {
    ask(nobody(), Some(member), endpoint, tls, time_limit).await
}

fn nobody() -> wire::Identity {
    wire::Identity {
        format_min: *FORMATS.start(),
        format_max: *FORMATS.end(),
        cluster_name: String::new(),
        cluster: signed(ClusterId::NONE.0),
        node_id: signed(NodeId(u64::MAX).0),
        storage: signed(StorageId(0).0),
        process: None,
    }
}

/// Like [`probe`], asking as node `own`: the answer says whether the probed node knows it.
pub(crate) async fn probe_as(
    own: &LocalNode,
    endpoint: &Endpoint,
    time_limit: Duration,
) -> Result<PeerIdentity, TransportError> {
    ask(own.identity(), None, endpoint, own.config.tls.as_ref(), time_limit).await
}

async fn ask(
    asker: wire::Identity,
    member: Option<&Endpoint>,
    endpoint: &Endpoint,
    tls: Option<&Tls>,
    time_limit: Duration,
) -> Result<PeerIdentity, TransportError> {
    let io = |source| TransportError::Io { context: format!("probing {endpoint}"), source };
    let exchange = async {
        let stream = connect_with(endpoint, time_limit, tls).await?;
        let (reader, mut writer) = stream.into_split();
        let frame = calls::encode_describe(asker, member.map(Endpoint::to_string))
            .map_err(|error| invalid(framing::error_text(&error)))?;
        writer.write_all(&frame).await?;
        writer.flush().await?;
        let mut answers = framing::reader(reader, ANSWER_BYTES_MAX);
        let answer = next_frame(&mut answers).await?;
        let answer =
            calls::read_describe_reply(&answer).map_err(|error| invalid(framing::error_text(&error)))?;
        description_from_wire(answer).map_err(invalid)
    };
    timeout(time_limit, exchange).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(io)
}

fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Longest answer: enough for some thousand founders.
const ANSWER_BYTES_MAX: usize = 64 << 10;
