//! The caller of a connection of Thrift.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use kv_state_machine::Caller;
use kv_store_client::{
    admin::NodeIdentity,
    idl::LoginRequest,
    protocol::{Call, Fault, Reply},
};

use crate::{
    auth::Origin,
    between::Channel,
    call_log::{CallOrigin, CallRecord, Protocol},
    convert,
    routing::RoutingManager,
};

/// The caller of a connection: the user that it has logged in as, else the user that the client's certificate names. The
/// certificate of another node names no user, because the node forwards calls of its own clients.
#[derive(Clone)]
pub(super) struct ConnectionCaller(Arc<Shared>);

struct Shared {
    /// Address of the client.
    peer: SocketAddr,
    logged_in: OnceLock<Mutex<Caller>>,
    is_node: AtomicBool,
    certificate_name: Option<String>,
    /// For the requests of another node.
    channel: Channel,
    /// Number of sessions that the connection has opened without a user.
    sessions: AtomicU32,
}

impl ConnectionCaller {
    pub(super) fn new(peer: SocketAddr, certificate_name: Option<String>) -> Self {
        Self(Arc::new(Shared {
            peer,
            logged_in: OnceLock::new(),
            is_node: AtomicBool::new(false),
            certificate_name,
            channel: Channel::default(),
            sessions: AtomicU32::new(0),
        }))
    }

    pub(super) fn get(&self, router: &RoutingManager) -> Caller {
        if let Some(caller) = self.0.logged_in.get() {
            return caller.lock().unwrap_or_else(PoisonError::into_inner).clone();
        }
        match self.user_name() {
            None => Caller::Anonymous,
            Some(name) => Caller::user(name, router.database().auth().revision()),
        }
    }

    /// Starts the record of a call.
    pub(super) fn record(&self, router: &RoutingManager, method: &str) -> Option<Box<CallRecord>> {
        let origin = CallOrigin { peer: self.0.peer, protocol: Protocol::Thrift };
        let mut record = router.call_log().start(origin, method)?;
        if self.0.is_node.load(Ordering::Relaxed) {
            record.note_forwarded();
        }
        Some(record)
    }

    pub(super) fn origin(&self) -> Origin {
        self.0.peer.ip().into()
    }

    pub(super) fn channel(&self) -> &Channel {
        &self.0.channel
    }

    /// Counts a session that a call is about to open. With users, the store keeps them from removing each other's sessions; without,
    /// a connection that opens sessions in a loop would remove those of all other clients.
    ///
    /// # Errors
    /// The connection has opened too many.
    pub(super) fn count_session(&self, router: &RoutingManager, call: &Call) -> Result<(), Fault> {
        if !matches!(call, Call::OpenSession) || self.get(router) != Caller::Anonymous {
            return Ok(());
        }
        let counted = self.0.sessions.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |opened| {
            (opened < SESSIONS_MAX).then_some(opened + 1)
        });
        counted.map(drop).map_err(|_| {
            convert::invalid(format!(
                "this connection has opened {SESSIONS_MAX} sessions, the maximum: a client needs one; use those, or connect again"
            ))
        })
    }

    /// Name of the user that the certificate is for.
    fn user_name(&self) -> Option<&str> {
        self.0.certificate_name.as_deref().filter(|_| !self.0.is_node.load(Ordering::Relaxed))
    }

    /// Checks that the caller, another node, has connected to the node that it expects.
    pub(super) fn identify(&self, router: &RoutingManager, expected: &NodeIdentity) -> Result<Reply, Fault> {
        let own = router.identify(expected)?;
        self.0.is_node.store(true, Ordering::Relaxed);
        Ok(Reply::NoForwarding(own))
    }

    /// A login that fails leaves the connection as it was.
    pub(super) async fn log_in(
        &self,
        router: &RoutingManager,
        request: LoginRequest,
    ) -> Result<Reply, Fault> {
        let (caller, reply) = router.log_in(request, self.origin()).await?;
        let place = self.0.logged_in.get_or_init(|| Mutex::new(Caller::Anonymous));
        *place.lock().unwrap_or_else(PoisonError::into_inner) = caller;
        Ok(reply)
    }
}

/// Sessions that a connection without a user may open.
const SESSIONS_MAX: u32 = 1000;

#[cfg(test)]
mod tests {
    use consensus_core::NodeId;
    use kv_state_machine::ConsensusKvDatabase;

    use super::*;
    use crate::config::Routing;

    fn caller(certificate_name: Option<String>) -> ConnectionCaller {
        ConnectionCaller::new(([127, 0, 0, 1], 9090).into(), certificate_name)
    }

    #[tokio::test]
    async fn connection_without_user_opens_a_bounded_number_of_sessions() {
        let dir = tempfile::tempdir().unwrap();
        let database = ConsensusKvDatabase::new_with_mock(NodeId(0), dir.path()).unwrap();
        let router = RoutingManager::new(NodeId(0), database, None, Routing::Forward, 10);
        let (caller, other) = (caller(None), caller(Some("ann".to_owned())));
        for _ in 0..SESSIONS_MAX {
            caller.count_session(&router, &Call::OpenSession).unwrap();
        }
        let refused = caller.count_session(&router, &Call::OpenSession).unwrap_err();
        assert!(refused.to_string().contains("has opened 1000 sessions"), "{refused}");
        caller.count_session(&router, &Call::Status).unwrap();
        for _ in 0..=SESSIONS_MAX {
            other.count_session(&router, &Call::OpenSession).unwrap();
        }
    }

    #[test]
    fn certificate_of_a_caller_that_is_a_node_names_no_user() {
        let caller = caller(Some("root".to_owned()));
        assert_eq!(caller.user_name(), Some("root"));
        caller.0.is_node.store(true, Ordering::Relaxed);
        assert_eq!(caller.clone().user_name(), None, "calls in hand share it");
    }
}
