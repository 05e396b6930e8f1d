//! Users, roles and permissions.

use consensus_core::Endpoint;
use kv_etcd_api::{
    authpb::{Permission, UserAddOptions, permission::Type},
    etcdserverpb::{
        AuthDisableRequest, AuthEnableRequest, AuthRoleAddRequest, AuthRoleGrantPermissionRequest,
        AuthStatusRequest, AuthUserAddRequest, AuthUserChangePasswordRequest, AuthUserDeleteRequest,
        AuthUserGetRequest, AuthUserGrantRoleRequest, AuthUserRevokeRoleRequest, AuthenticateRequest,
        CompactionRequest, HashKvRequest, LeaseGrantRequest, MemberListRequest, PutRequest, RangeRequest,
        RequestOp, SnapshotRequest, TxnRequest, WatchCreateRequest, auth_client::AuthClient,
        cluster_client::ClusterClient, kv_client::KvClient as EtcdKvClient, lease_client::LeaseClient,
        maintenance_client::MaintenanceClient, request_op::Request as Part,
    },
    v3lockpb::{LockRequest, lock_client::LockClient},
};
use kv_store_client::{
    ClientConfig, ClientError, Connection, Credentials, KvClient,
    idl::{self, DeniedReason, LoginRequest},
    protocol::{Call, Fault, Reply},
};
use tonic::{
    Code, Request, Status, service::Interceptor, service::interceptor::InterceptedService, transport::Channel,
};

use super::{
    clients::{Alone, PATIENCE, Watching, channel, get, keys, put, refusal},
    gateway::ask_with,
};
use crate::common::Cluster;

/// A client, with the token of a user or without.
#[derive(Clone)]
pub(super) struct Client {
    channel: Channel,
    pub(super) token: Option<String>,
}

impl Interceptor for Client {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.token {
            request.metadata_mut().insert("token", token.parse().unwrap());
        }
        Ok(request)
    }
}

impl Client {
    pub(super) async fn new(port: u16) -> Self {
        Self { channel: channel(port).await, token: None }
    }

    pub(super) async fn of(port: u16, user: &str, password: &str) -> Self {
        let mut client = Self::new(port).await;
        client.token = Some(client.login(user, password).await.unwrap());
        client
    }

    pub(super) async fn login(&self, user: &str, password: &str) -> Result<String, Status> {
        let request = AuthenticateRequest { name: user.to_owned(), password: password.to_owned() };
        Ok(AuthClient::new(self.channel.clone()).authenticate(request).await?.into_inner().token)
    }

    pub(super) fn kv(&self) -> EtcdKvClient<InterceptedService<Channel, Self>> {
        EtcdKvClient::with_interceptor(self.channel.clone(), self.clone())
    }

    pub(super) fn auth(&self) -> AuthClient<InterceptedService<Channel, Self>> {
        AuthClient::with_interceptor(self.channel.clone(), self.clone())
    }

    fn lease(&self) -> LeaseClient<InterceptedService<Channel, Self>> {
        LeaseClient::with_interceptor(self.channel.clone(), self.clone())
    }

    fn maintenance(&self) -> MaintenanceClient<InterceptedService<Channel, Self>> {
        MaintenanceClient::with_interceptor(self.channel.clone(), self.clone())
    }

    pub(super) async fn add_user(&self, name: &str, password: &str, role: &str) {
        let (name, password) = (name.to_owned(), password.to_owned());
        let add = AuthUserAddRequest { name: name.clone(), password, ..Default::default() };
        self.auth().user_add(add).await.unwrap();
        let grant = AuthUserGrantRoleRequest { user: name, role: role.to_owned() };
        self.auth().user_grant_role(grant).await.unwrap();
    }

    async fn grant(&self, role: &str, kind: Type, key: &str, end: &str) {
        let perm = Permission {
            perm_type: kind.into(),
            key: key.to_owned().into(),
            range_end: end.to_owned().into(),
        };
        let request = AuthRoleGrantPermissionRequest { name: role.to_owned(), perm: Some(perm) };
        self.auth().role_grant_permission(request).await.unwrap();
    }

    /// Adds the users `root`, and `ann` who may read `[a,m)` and write `[g,t)`; enables authentication.
    pub(super) async fn enable(&self) {
        self.auth().role_add(AuthRoleAddRequest { name: "r".to_owned() }).await.unwrap();
        self.grant("r", Type::Read, "a", "g").await;
        self.grant("r", Type::Readwrite, "g", "m").await;
        self.grant("r", Type::Write, "m", "t").await;
        self.add_user("root", "secret", "root").await;
        self.add_user("ann", "word", "r").await;
        self.auth().auth_enable(AuthEnableRequest {}).await.unwrap();
    }
}

fn denied() -> (Code, String) {
    (Code::PermissionDenied, "etcdserver: permission denied".to_owned())
}

fn no_user() -> (Code, String) {
    (Code::InvalidArgument, "etcdserver: user name is empty".to_owned())
}

fn invalid_token() -> (Code, String) {
    (Code::Unauthenticated, "etcdserver: invalid auth token".to_owned())
}

/// A server with authentication, and the clients of nobody, `ann` and `root`.
pub(super) async fn started() -> (Alone, Client, Client, Client) {
    let alone = Alone::start().await;
    let port = alone.server.port;
    let nobody = Client::new(port).await;
    nobody.enable().await;
    let (ann, root) = (Client::of(port, "ann", "word").await, Client::of(port, "root", "secret").await);
    (alone, nobody, ann, root)
}

#[tokio::test]
async fn user_does_what_its_roles_allow_and_nothing_else() {
    let (_alone, nobody, ann, root) = started().await;
    assert_eq!(refusal(nobody.kv().put(put("n", "1")).await), no_user());
    assert_eq!(refusal(nobody.kv().range(get("a")).await), no_user());
    ann.kv().put(put("n", "1")).await.unwrap();
    assert_eq!(refusal(ann.kv().put(put("b", "1")).await), denied());
    assert_eq!(refusal(ann.kv().put(PutRequest { prev_kv: true, ..put("n", "2") }).await), denied());
    ann.kv().range(RangeRequest { range_end: "m".into(), ..get("a") }).await.unwrap();
    assert_eq!(refusal(ann.kv().range(RangeRequest { range_end: "n".into(), ..get("a") }).await), denied());
    assert_eq!(refusal(ann.kv().range_stream(get("n")).await), denied());
    root.kv().put(PutRequest { prev_kv: true, ..put("zz", "1") }).await.unwrap();
    let compact = CompactionRequest { revision: 2, physical: false };
    assert_eq!(refusal(ann.kv().compact(compact).await), denied());
    root.kv().compact(compact).await.unwrap();
    assert_eq!(refusal(ann.maintenance().hash_kv(HashKvRequest::default()).await), denied());
    root.maintenance().hash_kv(HashKvRequest::default()).await.unwrap();
    for (client, expected) in [(&nobody, Some(no_user())), (&ann, None)] {
        let mut cluster = ClusterClient::with_interceptor(client.channel.clone(), client.clone());
        let members = cluster.member_list(MemberListRequest::default()).await;
        assert_eq!(members.err().map(|status| (status.code(), status.message().to_owned())), expected);
    }
    let own = ann.auth().user_get(AuthUserGetRequest { name: "ann".to_owned() }).await.unwrap();
    assert_eq!(own.into_inner().roles, ["r"]);
    assert_eq!(refusal(ann.auth().user_get(AuthUserGetRequest { name: "root".to_owned() }).await), denied());
    let status = nobody.auth().auth_status(AuthStatusRequest {}).await.unwrap().into_inner();
    assert!(status.enabled);
    assert_eq!(refusal(ann.auth().auth_disable(AuthDisableRequest {}).await), denied());
    root.auth().auth_disable(AuthDisableRequest {}).await.unwrap();
    nobody.kv().put(put("b", "2")).await.unwrap();
}

#[tokio::test]
async fn wrong_password_and_invalid_token_are_refused_in_etcds_words() {
    let alone = Alone::start().await;
    let client = Client::new(alone.server.port).await;
    let not_enabled = "etcdserver: authentication is not enabled".to_owned();
    assert_eq!(refusal(client.login("ann", "word").await), (Code::FailedPrecondition, not_enabled));
    let certificate_only = AuthUserAddRequest {
        name: "cert".to_owned(),
        options: Some(UserAddOptions { no_password: true }),
        ..Default::default()
    };
    client.auth().user_add(certificate_only).await.unwrap();
    client.enable().await;
    let failed = "etcdserver: authentication failed, invalid user ID or password".to_owned();
    for (user, password) in [("ann", "wrong"), ("ann", ""), ("nobody", "word"), ("", "")] {
        assert_eq!(refusal(client.login(user, password).await), (Code::InvalidArgument, failed.clone()));
    }
    let none = "auth: authentication failed, password was given for no password user".to_owned();
    assert_eq!(refusal(client.login("cert", "x").await), (Code::Unknown, none));
    let token = client.login("ann", "word").await.unwrap();
    for wrong in ["", "x", "x.1", &token[1..], &format!("{token}A")] {
        let client = Client { token: Some(wrong.to_owned()), ..client.clone() };
        assert_eq!(refusal(client.kv().range(get("a")).await), invalid_token(), "{wrong:?}");
    }
}

#[tokio::test]
async fn hash_of_bcrypt_is_taken_for_a_password() {
    let (alone, _, _, root) = started().await;
    // Of the password "imported", cost 4.
    let hash = bcrypt::hash("imported", 4).unwrap();
    let hashed_password = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, hash);
    let add = AuthUserAddRequest { name: "old".to_owned(), hashed_password, ..Default::default() };
    root.auth().user_add(add).await.unwrap();
    Client::of(alone.server.port, "old", "imported").await;
    let add =
        AuthUserAddRequest { name: "x".to_owned(), hashed_password: "eA==".to_owned(), ..Default::default() };
    assert_eq!(refusal(root.auth().user_add(add).await).0, Code::InvalidArgument);
}

#[tokio::test]
async fn token_ends_with_the_password_and_the_user_but_not_with_a_role() {
    let (alone, _, ann, root) = started().await;
    let revoke = AuthUserRevokeRoleRequest { name: "ann".to_owned(), role: "r".to_owned() };
    root.auth().user_revoke_role(revoke).await.unwrap();
    assert_eq!(refusal(ann.kv().range(get("a")).await), denied());
    let grant = AuthUserGrantRoleRequest { user: "ann".to_owned(), role: "r".to_owned() };
    root.auth().user_grant_role(grant.clone()).await.unwrap();
    ann.kv().range(get("a")).await.unwrap();
    let change = AuthUserChangePasswordRequest {
        name: "ann".to_owned(),
        password: "new".to_owned(),
        ..Default::default()
    };
    root.auth().user_change_password(change).await.unwrap();
    assert_eq!(refusal(ann.kv().range(get("a")).await), invalid_token());
    let again = Client::of(alone.server.port, "ann", "new").await;
    again.kv().range(get("a")).await.unwrap();
    root.auth().user_delete(AuthUserDeleteRequest { name: "ann".to_owned() }).await.unwrap();
    root.add_user("ann", "new", "r").await;
    assert_eq!(refusal(again.kv().range(get("a")).await), invalid_token(), "it is another user");
}

#[tokio::test]
async fn put_in_a_transaction_with_previous_pair_or_lease_is_authorised_like_any_other() {
    let (_alone, _, ann, root) = started().await;
    root.lease().lease_grant(LeaseGrantRequest { ttl: 600, id: 7 }).await.unwrap();
    root.kv().put(PutRequest { lease: 7, ..put("zz", "1") }).await.unwrap();
    let txn = |put: PutRequest| {
        let part = RequestOp { request: Some(Part::RequestPut(put)) };
        let inner = TxnRequest { success: vec![part], ..Default::default() };
        let nested = RequestOp { request: Some(Part::RequestTxn(inner.clone())) };
        [inner, TxnRequest { failure: vec![nested], ..Default::default() }]
    };
    let refused = [PutRequest { prev_kv: true, ..put("n", "1") }, PutRequest { lease: 7, ..put("n", "1") }];
    for request in refused.into_iter().flat_map(txn) {
        assert_eq!(refusal(ann.kv().txn(request.clone()).await), denied(), "{request:?}");
    }
    for request in txn(put("n", "1")) {
        ann.kv().txn(request).await.unwrap();
    }
}

pub(super) async fn watching(port: u16, client: &Client) -> Watching {
    let token: &'static str = client.token.clone().unwrap_or_default().leak();
    let metadata = [("token", token)];
    Watching::open_with(port, if token.is_empty() { &[] } else { &metadata }).await
}

pub(super) fn watch(key: &str, end: &str) -> WatchCreateRequest {
    WatchCreateRequest { key: key.to_owned().into(), range_end: end.to_owned().into(), ..Default::default() }
}

#[tokio::test]
async fn watch_on_one_key_delivers_no_later_keys_and_a_range_needs_permission_for_all_of_it() {
    let (alone, nobody, ann, root) = started().await;
    let port = alone.server.port;
    let mut stream = watching(port, &ann).await;
    assert!(!stream.create(watch("l", "")).await.canceled);
    for (key, end) in [("l", "n"), ("l", "\0"), ("n", "")] {
        let refused = stream.create(watch(key, end)).await;
        let reason = "rpc error: code = PermissionDenied desc = etcdserver: permission denied";
        assert_eq!((refused.watch_id, refused.canceled, &refused.cancel_reason[..]), (-1, true, reason));
    }
    for key in ["l0", "l\0", "m", "z", "l"] {
        root.kv().put(put(key, "1")).await.unwrap();
    }
    let events = stream.next().await.events;
    let keys: Vec<_> = events.iter().map(|event| event.kv.clone().unwrap().key).collect();
    assert_eq!(keys, ["l"]);
    let refused = watching(port, &nobody).await.create(watch("l", "")).await;
    let reason = "rpc error: code = InvalidArgument desc = etcdserver: user name is empty";
    assert_eq!((refused.canceled, &refused.cancel_reason[..]), (true, reason));
    let wrong = Client { token: Some("x".to_owned()), ..nobody };
    let refused = watching(port, &wrong).await.create(watch("l", "")).await;
    let reason = "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token";
    assert_eq!((refused.canceled, &refused.cancel_reason[..]), (true, reason));
}

#[tokio::test]
async fn running_watch_ends_when_its_permission_does() {
    let (alone, _, ann, root) = started().await;
    let mut stream = watching(alone.server.port, &ann).await;
    let id = stream.create(watch("a", "m")).await.watch_id;
    root.kv().put(put("b", "1")).await.unwrap();
    assert_eq!(stream.next().await.events.len(), 1);
    let revoke = AuthUserRevokeRoleRequest { name: "ann".to_owned(), role: "r".to_owned() };
    root.auth().user_revoke_role(revoke).await.unwrap();
    root.kv().put(put("b", "2")).await.unwrap();
    let ended = stream.next().await;
    let reason = "rpc error: code = PermissionDenied desc = etcdserver: permission denied";
    assert_eq!((ended.watch_id, ended.canceled, &ended.cancel_reason[..]), (id, true, reason));
    assert!(ended.events.is_empty());
}

#[tokio::test]
async fn watch_ends_with_an_invalid_token_when_the_password_changes() {
    let (alone, _, ann, root) = started().await;
    let mut stream = watching(alone.server.port, &ann).await;
    let id = stream.create(watch("a", "m")).await.watch_id;
    let (name, password) = ("ann".to_owned(), "new".to_owned());
    let change = AuthUserChangePasswordRequest { name, password, ..Default::default() };
    root.auth().user_change_password(change).await.unwrap();
    let ended = stream.next().await;
    let reason = "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token";
    assert_eq!((ended.watch_id, ended.canceled, &ended.cancel_reason[..]), (id, true, reason));
}

#[tokio::test]
async fn snapshot_that_waited_while_authentication_was_enabled_is_refused() {
    let alone = Alone::start().await;
    let port = alone.server.port;
    let (nobody, mut kv) = (Client::new(port).await, alone.kv().await);
    let value: String =
        (0..1 << 20).map(|n: u32| char::from(b'a' + (n.wrapping_mul(2_654_435_761) >> 27) as u8)).collect();
    for n in 0..24 {
        kv.put(put(&format!("k{n}"), &value)).await.unwrap();
    }
    let mut unread = Vec::new();
    for _ in 0..2 {
        let mut maintenance = MaintenanceClient::new(channel(port).await);
        let mut stream = maintenance.snapshot(SnapshotRequest {}).await.unwrap().into_inner();
        stream.message().await.unwrap().unwrap();
        unread.push(stream);
    }
    let waiting = nobody.clone();
    let waiting = async move { waiting.maintenance().snapshot(SnapshotRequest {}).await };
    let mut waiting = std::pin::pin!(waiting);
    // The calls that enable authentication follow on the same connection, so that the server has this one before.
    assert!(futures::poll!(&mut waiting).is_pending());
    nobody.enable().await;
    assert!(futures::poll!(&mut waiting).is_pending());
    drop(unread);
    assert_eq!(refusal(waiting.await), no_user());
}

#[tokio::test]
async fn lock_is_taken_with_the_permissions_of_its_caller() {
    let (_alone, _, ann, root) = started().await;
    let lock = |client: &Client| LockClient::with_interceptor(client.channel.clone(), client.clone());
    let request = |name: &'static str| LockRequest { name: name.into(), lease: 0 };
    let refused = refusal(lock(&ann).lock(request("z")).await);
    assert_eq!(refused, (Code::Unknown, "etcdserver: permission denied".to_owned()));
    lock(&ann).lock(request("h")).await.unwrap();
    lock(&root).lock(request("z")).await.unwrap();
}

#[tokio::test]
async fn gateway_takes_the_token_of_the_header_authorization() {
    let (alone, _, ann, _) = started().await;
    let token = ann.token.unwrap();
    let range = |header: String| {
        let body = r#"{"key":"YQ=="}"#;
        async move { ask_with(alone.server.port, "POST", "/v3/kv/range", &header, body).await }
    };
    let range = &range;
    assert_eq!(range(format!("authorization: {token}\r\n")).await.0, 200);
}

#[tokio::test]
async fn probes_of_health_need_no_user() {
    let (alone, _, _, _) = started().await;
    for path in ["/health", "/livez", "/readyz", "/version"] {
        assert_eq!(ask_with(alone.server.port, "GET", path, "", "").await.0, 200, "{path}");
    }
}

#[tokio::test]
async fn thrift_client_without_login_is_refused() {
    let (alone, _, _, root) = started().await;
    let client = alone.server.client();
    let refused = client.get("a").await.unwrap_err();
    assert!(refused.to_string().contains("log in"), "{refused}");
    assert!(client.put("a", "1").await.is_err());
    root.auth().auth_disable(AuthDisableRequest {}).await.unwrap();
    client.put("a", "1").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn token_counts_on_every_node_and_after_a_restart_and_followers_name_the_caller() {
    let mut cluster = Cluster::start(3, "", "");
    let leader = cluster.leader().await;
    let follower = (leader + 1) % 3;
    let nobody = Client::new(cluster.servers[leader].port).await;
    nobody.enable().await;
    let ann = Client::of(cluster.servers[leader].port, "ann", "word").await;
    let at_follower =
        Client { channel: channel(cluster.servers[follower].port).await, token: ann.token.clone() };
    at_follower.kv().put(put("n", "1")).await.unwrap();
    assert_eq!(refusal(at_follower.kv().put(put("b", "1")).await), denied());
    at_follower.lease().lease_grant(LeaseGrantRequest { ttl: 600, id: 7 }).await.unwrap();
    let nobody_at_follower = Client { token: None, ..at_follower };
    assert_eq!(refusal(nobody_at_follower.kv().put(put("n", "1")).await), no_user());
    cluster.servers[follower].kill();
    cluster.servers[follower].start();
    let begun = std::time::Instant::now();
    let port = cluster.servers[follower].port;
    let again = loop {
        assert!(begun.elapsed() < PATIENCE, "{}", cluster.servers[follower].log());
        let Ok(endpoint) = Channel::from_shared(format!("http://127.0.0.1:{port}")).unwrap().connect().await
        else {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            continue;
        };
        let client = Client { channel: endpoint, token: ann.token.clone() };
        match client.kv().range(RangeRequest { range_end: "m".into(), ..get("a") }).await {
            Ok(found) => break keys(&found.into_inner()),
            Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status}"),
        }
    };
    assert!(again.is_empty());
}

/// A client over Thrift that logs in.
fn thrift(port: u16, user: &str, password: &str) -> KvClient {
    let mut config = ClientConfig::new(vec![endpoint(port)]);
    config.credentials = Some(Credentials { user: user.to_owned(), password: password.to_owned() });
    KvClient::new(config).unwrap()
}

fn endpoint(port: u16) -> Endpoint {
    format!("127.0.0.1:{port}").parse().unwrap()
}

#[tokio::test]
async fn thrift_client_acts_as_the_user_that_it_logs_in_as() {
    let alone = Alone::start().await;
    let port = alone.server.port;
    thrift(port, "ann", "word").put("x", "1").await.expect("authentication is not enabled yet");
    let nobody = Client::new(port).await;
    nobody.enable().await;
    let (ann, root) = (thrift(port, "ann", "word"), thrift(port, "root", "secret"));
    ann.put("n", "1").await.unwrap();
    let reason = |error: ClientError| match error {
        ClientError::Rejected(Fault::Denied(denied)) => denied.reason,
        other => panic!("{other:?}"),
    };
    assert_eq!(reason(ann.put("b", "1").await.unwrap_err()), DeniedReason::PERMISSION);
    assert_eq!(reason(ann.get("n").await.unwrap_err()), DeniedReason::PERMISSION);
    assert_eq!(reason(ann.hash_of(&endpoint(port)).await.unwrap_err()), DeniedReason::PERMISSION);
    root.hash_of(&endpoint(port)).await.unwrap();
    for (user, password) in [("ann", "wrong"), ("eve", "word")] {
        let refused = thrift(port, user, password).get("a").await.unwrap_err();
        assert_eq!(reason(refused), DeniedReason::LOGIN_FAILED, "{user}");
    }
    // The connection of a user whose password was changed is void; the client makes a new one, in vain.
    let root = Client::of(port, "root", "secret").await;
    let password = "new".to_owned();
    let change = AuthUserChangePasswordRequest { name: "ann".to_owned(), password, ..Default::default() };
    root.auth().user_change_password(change).await.unwrap();
    assert_eq!(reason(ann.put("n", "2").await.unwrap_err()), DeniedReason::LOGIN_AGAIN);
    assert_eq!(reason(ann.put("n", "2").await.unwrap_err()), DeniedReason::LOGIN_FAILED);
}

#[tokio::test]
async fn poll_of_a_user_delivers_only_keys_that_it_may_read() {
    let (alone, _, _, _) = started().await;
    let connection = logged_in(alone.server.port, "ann", "word").await;
    let poll = |key: &str| {
        let request = idl::WatchRequest::of(key, None);
        Call::Watch(idl::WatchRequest { wait_ms: Some(1), ..request })
    };
    assert!(matches!(connection.call(poll("a")).await.unwrap(), Ok(Reply::Watch(_))));
    let refused = connection.call(poll("n")).await.unwrap();
    assert!(matches!(refused, Err(Fault::Denied(_))), "{refused:?}");
    let nobody = Connection::open(&endpoint(alone.server.port), PATIENCE).await.unwrap();
    let refused = nobody.call(poll("a")).await.unwrap();
    assert!(matches!(refused, Err(Fault::Denied(_))), "{refused:?}");
}

#[tokio::test]
async fn poll_that_waits_while_its_permission_is_revoked_delivers_nothing() {
    let (alone, _, _, root) = started().await;
    let connection = logged_in(alone.server.port, "ann", "word").await;
    let request = idl::WatchRequest { wait_ms: Some(60_000), ..idl::WatchRequest::of("b", None) };
    let mut waiting = std::pin::pin!(connection.call(Call::Watch(request)));
    assert!(futures::poll!(&mut waiting).is_pending());
    let revoke = AuthUserRevokeRoleRequest { name: "ann".to_owned(), role: "r".to_owned() };
    root.auth().user_revoke_role(revoke).await.unwrap();
    root.kv().put(put("b", "1")).await.unwrap();
    let refused = waiting.await.unwrap();
    assert!(matches!(refused, Err(Fault::Denied(_))), "{refused:?}");
}

pub(super) async fn logged_in(port: u16, user: &str, password: &str) -> Connection {
    let connection = Connection::open(&endpoint(port), PATIENCE).await.unwrap();
    let request =
        LoginRequest { user: Some(user.to_owned()), password: Some(password.to_owned()), token: None };
    connection.call(Call::Login(request)).await.unwrap().unwrap();
    connection
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn call_that_a_follower_forwards_has_the_permissions_of_its_caller() {
    let cluster = Cluster::start(3, "", "");
    let leader = cluster.leader().await;
    let port = cluster.servers[(leader + 1) % 3].port;
    Client::new(cluster.servers[leader].port).await.enable().await;
    let (ann, root) = (logged_in(port, "ann", "word").await, logged_in(port, "root", "secret").await);
    let put = |key: &str| Call::Put(idl::PutRequest::of(key, "1"));
    assert!(matches!(ann.call(put("n")).await.unwrap(), Ok(Reply::Put(_))));
    let refused = ann.call(put("b")).await.unwrap();
    assert!(matches!(refused, Err(Fault::Denied(_))), "{refused:?}");
    let refused = ann.call(Call::TransferLeader(-1)).await.unwrap();
    assert!(matches!(refused, Err(Fault::Refused(_))), "{refused:?}");
    assert!(matches!(root.call(Call::Alarms).await.unwrap(), Ok(Reply::Alarms(_))));
    assert!(matches!(root.call(Call::TransferLeader(-1)).await.unwrap(), Ok(Reply::TransferLeader(_))));
}
