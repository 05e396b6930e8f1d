//! Connections beyond the maximum number of clients: an operator's request is served, another node gets
//! a place, and a client hears why it gets none.

use std::{
    io,
    time::{Duration, Instant},
};

use consensus_tls::WriteHalf;
use futures::StreamExt;
use kv_store_client::{
    idl::Unavailable,
    protocol::{Call, Fault, Incoming},
};
use tokio::io::AsyncWriteExt;

use super::{
    Client,
    caller::ConnectionCaller,
    connection::{self, Frames},
};

/// Answers what operators ask, refuses the first call of a client. Whether it is another node, which is to be served.
pub(super) async fn is_node(
    frames: &mut Frames,
    writer: &mut WriteHalf,
    client: &Client,
    caller: &ConnectionCaller,
) -> io::Result<bool> {
    frames.decoder_mut().set_frame_bytes_max(FRAME_BYTES_MAX);
    let polls = client.polls.connection();
    while let Some(frame) = tokio::time::timeout(CALL_TIMEOUT, frames.next()).await? {
        let incoming = connection::read_call(&frame?)?;
        let is_handshake = matches!(incoming.call, Ok(Call::NoForwarding(_)));
        let is_node = matches!(&incoming.call, Ok(Call::NoForwarding(expected)) if client.router.identify(expected).is_ok());
        let is_operators = matches!(
            incoming.call,
            Ok(Call::Status
                | Call::Login(_)
                | Call::Hash
                | Call::ChangeMembers(_)
                | Call::TransferLeader(_)
                | Call::Alarms
                | Call::DisarmAlarm(_)
                | Call::ChangeAuth(_)
                | Call::Auth
                | Call::SetLogLevel(_))
        );
        let answer = if is_handshake || is_operators {
            let mut room = client.budget.connection().room();
            connection::answer(&client.router, &polls, caller, true, incoming, None, &mut room).await
        } else {
            refuse(&incoming, client.limits.clients_max)
        };
        let written = async {
            writer.write_all(&answer).await?;
            writer.flush().await
        };
        tokio::time::timeout(CALL_TIMEOUT, written).await??;
        if is_node {
            frames.decoder_mut().set_frame_bytes_max(connection::FRAME_BYTES_MAX);
            return Ok(true);
        }
        if !is_operators {
            writer.shutdown().await?;
            break;
        }
    }
    Ok(false)
}

fn refuse(incoming: &Incoming, clients_max: usize) -> bytes::Bytes {
    let message = reason(clients_max);
    let retry_after_ms = Some(RETRY_AFTER_MS);
    let fault = Fault::Unavailable(Unavailable { message, maybe_applied: false, retry_after_ms });
    connection::encode(&incoming.name, incoming.sequence, Err(fault))
}

/// Why a client gets no place.
pub(crate) fn reason(clients_max: usize) -> String {
    format!(
        "the server has {clients_max} clients, as many as it takes; ask another one, or raise its limit of open files (ulimit -n) or \
         clients_max"
    )
}

/// Says once per outage that clients are refused, and how many they were when it is over.
pub(super) struct Refusals {
    clients_max: usize,
    since: Option<Instant>,
    refused: u64,
}

impl Refusals {
    pub(super) fn new(clients_max: usize) -> Self {
        Self { clients_max, since: None, refused: 0 }
    }

    /// A connection was accepted, with a place for it or without; so many places are left. An outage is over when an eighth of
    /// them is free: clients that come and go at the limit are one outage.
    pub(super) fn note(&mut self, is_refused: bool, free: usize) {
        match (is_refused, self.since) {
            (true, None) => {
                let clients_max = self.clients_max;
                tracing::warn!(
                    clients_max,
                    "there are as many clients as there may be: more are refused until some go; raise the limit of open files (ulimit -n) or clients_max"
                );
                (self.since, self.refused) = (Some(Instant::now()), 1);
            }
            (true, Some(_)) => self.refused += 1,
            (false, Some(since)) if free >= self.clients_max / 8 => {
                let (refused, seconds) = (self.refused, since.elapsed().as_secs());
                tracing::info!(refused, seconds, "clients are taken again");
                self.since = None;
            }
            (false, _) => {}
        }
    }
}

/// Maximum bytes of the first frame, which is short from operators and nodes.
const FRAME_BYTES_MAX: usize = 64 << 10;
/// How long a connection beyond the limit may wait between its calls.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection of HTTP beyond the limit may last: longer than a check of health takes.
pub(super) const HTTP_TIMEOUT: Duration = Duration::from_secs(12);
const RETRY_AFTER_MS: i64 = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_that_come_and_go_at_the_limit_are_one_outage() {
        let mut refusals = Refusals::new(16);
        refusals.note(false, 0);
        assert_eq!(refusals.since, None);
        for (is_refused, free) in [(true, 0), (true, 0), (false, 0), (true, 0), (false, 1)] {
            refusals.note(is_refused, free);
        }
        assert!(refusals.since.is_some() && refusals.refused == 3);
        refusals.note(false, 2);
        assert_eq!(refusals.since, None);
    }
}
