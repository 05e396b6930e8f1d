use std::sync::Mutex;

use bytes::Bytes;
use consensus_core::{
    Committed, ConsensusEngine, LogIndex, MemberChange as Change, Membership, ProposeError, ReadConsistency,
    ReadError, ShutdownError, SnapshotError, codec,
};
use kv_state_machine::{
    AuthOperation, AuthRejection, AuthSecret, Durability, KvCommand, KvRejection, KvStateMachine, Password,
    Permission, PermissionKind, Put,
};
use tokio::sync::watch;

use super::*;
use crate::answers::NodeBudget;

/// An engine whose log has commands that its node has not applied: it applies them with the next command, or when it is
/// asked for the current state.
struct Late {
    engine: Arc<dyn ConsensusEngine>,
    pending: Mutex<Vec<Bytes>>,
}

impl Late {
    async fn apply_pending(&self) {
        let pending = std::mem::take(&mut *self.pending.lock().unwrap());
        for command in pending {
            self.engine.propose(command).await.unwrap();
        }
    }

    fn append(&self, operation: AuthOperation) {
        let command = KvCommand::new(None, KvOperation::Auth(operation));
        self.pending.lock().unwrap().push(codec::encode(1, &command).into());
    }
}

#[tonic::async_trait]
impl ConsensusEngine for Late {
    async fn propose(&self, command: Bytes) -> Result<Committed, ProposeError> {
        self.apply_pending().await;
        self.engine.propose(command).await
    }

    async fn read_barrier(&self, consistency: ReadConsistency) -> Result<LogIndex, ReadError> {
        if consistency != ReadConsistency::Stale {
            self.apply_pending().await;
        }
        self.engine.read_barrier(consistency).await
    }

    fn status(&self) -> watch::Receiver<Arc<EngineStatus>> {
        self.engine.status()
    }

    async fn change_membership(&self, changes: Vec<Change>) -> Result<Arc<Membership>, ChangeError> {
        self.engine.change_membership(changes).await
    }

    async fn transfer_leadership(&self, to: Option<NodeId>) -> Result<NodeId, TransferError> {
        self.engine.transfer_leadership(to).await
    }

    async fn compact_log(&self) -> Result<LogIndex, SnapshotError> {
        self.engine.compact_log().await
    }

    async fn shutdown(&self) -> Result<(), ShutdownError> {
        self.engine.shutdown().await
    }
}

struct Server {
    router: RoutingManager,
    engine: Arc<Late>,
    channel: Channel,
    /// For requests to this server.
    sealer: tokio::sync::OnceCell<Sealer>,
    _dir: tempfile::TempDir,
}

impl Server {
    /// A server with the user `ann`, who may write `n`, and with a log that enables authentication; not applied yet.
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let machine = KvStateMachine::open(dir.path(), NodeId(0), Durability::EachBatch).unwrap();
        let executor = machine.executor();
        let engine = ConsensusKvDatabase::new_with_mock_on(NodeId(0), machine).unwrap().engine().clone();
        let engine = Arc::new(Late { engine, pending: Mutex::default() });
        let database = ConsensusKvDatabase::new(engine.clone(), executor);
        database.start().await.unwrap();
        let text = str::to_owned;
        let keys = kv_state_machine::KeyRange { key: "n".into(), range_end: None };
        let permission = Permission { kind: PermissionKind::Write, keys };
        for change in [
            AuthOperation::AddUser { user: text("root"), password: Password::None },
            AuthOperation::GrantRole { user: text("root"), role: text("root") },
            AuthOperation::AddUser { user: text("ann"), password: Password::None },
            AuthOperation::AddRole { role: text("r") },
            AuthOperation::GrantPermission { role: text("r"), permission },
            AuthOperation::GrantRole { user: text("ann"), role: text("r") },
        ] {
            database.execute_operation(KvOperation::Auth(change)).await.unwrap();
        }
        engine.append(AuthOperation::Enable { secret: AuthSecret(vec![1; 32].into()) });
        let router = RoutingManager::new(NodeId(0), database, None, Routing::Forward, 10);
        Self { router, engine, channel: Channel::default(), sealer: tokio::sync::OnceCell::new(), _dir: dir }
    }

    async fn enabled() -> Self {
        let server = Self::start().await;
        server.engine.apply_pending().await;
        server
    }

    async fn call(&self, caller: &Caller, call: Call) -> Result<Reply, Fault> {
        let mut room = NodeBudget::new(64 << 20, 16 << 20).connection().room();
        self.router.execute(caller, call, true, &mut room).await
    }

    async fn received(&self, bytes: &[u8]) -> Result<Reply, Fault> {
        let mut room = NodeBudget::new(64 << 20, 16 << 20).connection().room();
        self.router.execute_for_node(&self.channel, bytes, true, &mut room).await
    }

    /// Seals requests to this server on its connection.
    async fn sealer(&self) -> &Sealer {
        let challenged = async {
            match self.received(between::CHALLENGE_REQUEST).await {
                Ok(Reply::BetweenNodes(challenge)) => {
                    Sealer::new(NodeId(0), between::decode(&challenge).unwrap())
                }
                other => panic!("{other:?}"),
            }
        };
        self.sealer.get_or_init(|| challenged).await
    }

    /// Has a request executed as another node or a client sends it.
    async fn between(&self, bytes: Vec<u8>) -> Result<NodeAnswer, NodeFault> {
        match self.received(&bytes).await {
            Ok(Reply::BetweenNodes(answer)) => {
                between::decode::<Result<NodeAnswer, NodeFault>>(&answer).unwrap()
            }
            other => panic!("{other:?}"),
        }
    }

    fn ann(&self) -> Caller {
        Caller::user("ann", self.router.database().auth().revision())
    }

    /// A request that a node with the state of this one seals for the server `to`.
    async fn sealed_for(&self, to: &Self, caller: Caller, request: NodeRequest) -> Vec<u8> {
        let sealer = to.sealer().await;
        FromNode { caller, request }.encode(&self.router.database().auth(), sealer)
    }

    async fn sealed(&self, caller: Caller, request: NodeRequest) -> Vec<u8> {
        self.sealed_for(self, caller, request).await
    }
}

fn put(key: &str) -> NodeRequest {
    NodeRequest::Execute(KvOperation::Put(Put { key: key.to_owned().into(), ..Put::default() }))
}

fn rejected(rejection: AuthRejection) -> NodeFault {
    NodeFault::Rejected(KvRejection::from(rejection))
}

#[tokio::test]
async fn unsealed_request_is_not_executed_as_the_server_once_authentication_is_enabled() {
    let server = Server::start().await;
    let unsealed = server.sealed(Caller::Server, put("x")).await;
    assert!(!FromNode::claims_seal(&unsealed));
    assert_eq!(server.between(unsealed).await.unwrap_err(), rejected(AuthRejection::NoUser));
}

#[tokio::test]
async fn sealed_request_is_believed_by_a_node_that_has_not_applied_the_key_yet() {
    let (ahead, server) = (Server::enabled().await, Server::start().await);
    server.between(ahead.sealed_for(&server, ahead.ann(), put("n")).await).await.unwrap();
}

#[tokio::test]
async fn forged_request_between_nodes_is_refused() {
    let server = Server::enabled().await;
    let forged = FromNode { caller: Caller::Server, request: put("x") };
    let unsealed = forged.encode(&kv_state_machine::AuthState::default(), server.sealer().await);
    let refused = server.received(&unsealed).await;
    assert!(matches!(refused, Err(Fault::Refused(_))), "{refused:?}");
}

#[tokio::test]
async fn recorded_request_between_nodes_is_refused_on_its_connection_and_on_others() {
    let mut server = Server::enabled().await;
    let recorded = server.sealed(Caller::Server, put("x")).await;
    server.between(recorded.clone()).await.unwrap();
    let revision = server.router.database().revision().unwrap();
    for channel in [None, Some(Channel::default())] {
        server.channel = channel.unwrap_or(server.channel);
        let refused = server.received(&recorded).await;
        assert!(matches!(refused, Err(Fault::Refused(_))), "{refused:?}");
        server.received(between::CHALLENGE_REQUEST).await.unwrap();
        let refused = server.received(&recorded).await;
        assert!(matches!(refused, Err(Fault::Refused(_))), "{refused:?}");
    }
    assert_eq!(server.router.database().revision().unwrap(), revision);
}

#[tokio::test]
async fn leader_executes_a_forwarded_call_with_the_permissions_of_its_caller() {
    let server = Server::enabled().await;
    let call = |key: &str| NodeRequest::Call(Call::Put(idl::PutRequest::of(key, "1")).encode(0).unwrap());
    for (caller, key, is_permitted) in
        [(server.ann(), "n", true), (server.ann(), "b", false), (Caller::Anonymous, "n", false)]
    {
        let answer = server.between(server.sealed(caller.clone(), call(key)).await).await.unwrap();
        let NodeAnswer::Reply(frame) = answer else { panic!("{answer:?}") };
        let (_, outcome) = protocol::read_reply(&frame[framing::LENGTH_BYTES..]).unwrap();
        assert_eq!(outcome.is_ok(), is_permitted, "{caller:?} {key}: {outcome:?}");
    }
    let denied = rejected(AuthRejection::PermissionDenied);
    assert_eq!(server.between(server.sealed(server.ann(), put("b")).await).await.unwrap_err(), denied);
    let remove = || NodeRequest::Member(between::MemberRequest::Remove(NodeId(7)));
    assert_eq!(server.between(server.sealed(server.ann(), remove()).await).await.unwrap_err(), denied);
}

#[tokio::test]
async fn calls_that_are_no_commands_are_checked_in_the_current_state() {
    for call in [Call::TransferLeader(-1), Call::ChangeMembers(Vec::new())] {
        let server = Server::start().await;
        let Err(Fault::Refused(refused)) = server.call(&Caller::Anonymous, call.clone()).await else {
            panic!()
        };
        assert!(refused.message.contains("log in"), "{call:?}: {refused:?}");
    }
    let server = Server::start().await;
    let remove = NodeRequest::Member(between::MemberRequest::Remove(NodeId(7)));
    let unsealed = server.sealed(Caller::Anonymous, remove).await;
    assert_eq!(server.between(unsealed).await.unwrap_err(), rejected(AuthRejection::NoUser));
}
