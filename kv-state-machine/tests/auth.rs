//! Users and permissions: what each caller may do, in the state to which its operation is applied.

use consensus_core::{Entry, LogId, NodeId, StateMachine, codec};
use kv_state_machine::{
    Alarm, AlarmKind, AuthOperation, AuthRejection, AuthSecret, Caller, Compare, CompareResult,
    CompareTarget, ConsensusKvDatabase, Consistency, Delete, Durability, KeyRange, KvAnswer, KvCommand,
    KvError, KvOperation, KvRejection, KvResult, KvStateMachine, Password, Permission, PermissionKind, Put,
    Range, Session, Txn, Versionstamp,
};
use tempfile::TempDir;

const DENIED: AuthRejection = AuthRejection::PermissionDenied;

fn text(text: &str) -> String {
    text.to_owned()
}

fn add_user(user: &str) -> AuthOperation {
    AuthOperation::AddUser { user: text(user), password: Password::Hash(text("hash")) }
}

fn grant_role(user: &str, role: &str) -> AuthOperation {
    AuthOperation::GrantRole { user: text(user), role: text(role) }
}

fn grant(role: &str, kind: PermissionKind, keys: KeyRange) -> AuthOperation {
    AuthOperation::GrantPermission { role: text(role), permission: Permission { kind, keys } }
}

fn keys(key: &str, end: &str) -> KeyRange {
    KeyRange { key: text(key).into(), range_end: Some(text(end).into()) }
}

/// Operations after which `ann` may read `[a,m)` and write `[g,t)`, and authentication is enabled.
fn setup() -> Vec<AuthOperation> {
    vec![
        add_user("root"),
        grant_role("root", "root"),
        add_user("ann"),
        AuthOperation::AddRole { role: text("r") },
        grant("r", PermissionKind::Read, keys("a", "g")),
        grant("r", PermissionKind::ReadWrite, keys("g", "m")),
        grant("r", PermissionKind::Write, keys("m", "t")),
        grant_role("ann", "r"),
        AuthOperation::Enable { secret: AuthSecret(vec![1; 32].into()) },
    ]
}

fn put(key: &str) -> Put {
    Put { key: text(key).into(), value: "v".into(), ..Put::default() }
}

fn range(key: &str, end: Option<&str>) -> Range {
    Range { key: text(key).into(), range_end: end.map(|end| text(end).into()), ..Range::default() }
}

struct Database {
    database: ConsensusKvDatabase,
    _dir: TempDir,
}

impl Database {
    async fn start() -> Self {
        let dir = TempDir::new().unwrap();
        let database = ConsensusKvDatabase::new_with_mock(NodeId(1), dir.path()).unwrap();
        database.start().await.unwrap();
        let database = Self { database, _dir: dir };
        for operation in setup() {
            database.change(operation).await;
        }
        database
    }

    async fn change(&self, operation: AuthOperation) {
        self.database.execute_operation(KvOperation::Auth(operation)).await.unwrap();
    }

    fn ann(&self) -> Caller {
        Caller::user("ann", self.database.auth().revision())
    }

    async fn execute(&self, caller: &Caller, operation: KvOperation) -> Result<KvAnswer, KvError> {
        self.database.execute_as(caller, operation, None, Consistency::Linearizable).await
    }

    /// Reason why `ann` may not execute an operation; `None` if she may.
    async fn refusal(&self, operation: KvOperation) -> Option<AuthRejection> {
        refusal(self.execute(&self.ann(), operation).await)
    }
}

fn refusal<T>(outcome: Result<T, KvError>) -> Option<AuthRejection> {
    match outcome {
        Err(KvError::Rejected(KvRejection::Auth(rejection))) => Some(rejection),
        Err(other) => panic!("{other}"),
        Ok(_) => None,
    }
}

#[tokio::test]
async fn caller_without_user_is_refused_only_while_enabled() {
    let database = Database::start().await;
    let read = || KvOperation::Range(range("a", None));
    let outcome = database.execute(&Caller::Anonymous, read()).await;
    assert_eq!(refusal(outcome), Some(AuthRejection::NoUser));
    let unknown = database.execute(&Caller::user("eve", 100), read()).await;
    assert_eq!(refusal(unknown), Some(DENIED));
    database.change(AuthOperation::Disable).await;
    assert_eq!(refusal(database.execute(&Caller::Anonymous, read()).await), None);
}

#[tokio::test]
async fn put_delete_and_range_need_their_own_permission() {
    let database = Database::start().await;
    let previous = |key: &str| KvOperation::Put(Put { return_previous: true, ..put(key) });
    let delete = |key: &str, end: &str, return_previous| {
        let KeyRange { key, range_end } = keys(key, end);
        KvOperation::Delete(Delete { key, range_end, return_previous, ..Delete::default() })
    };
    let of = |KeyRange { key, range_end }| Delete { key, range_end, ..Delete::default() };
    for (expected, operation) in [
        (None, KvOperation::Put(put("n"))),
        (Some(DENIED), KvOperation::Put(put("b"))),
        (Some(DENIED), previous("n")),
        (None, previous("h")),
        (None, KvOperation::Range(range("a", Some("m")))),
        (Some(DENIED), KvOperation::Range(range("a", Some("n")))),
        (Some(DENIED), KvOperation::Range(range("a", Some("\0")))),
        (None, delete("g", "t", false)),
        (Some(DENIED), delete("g", "t", true)),
        (Some(DENIED), delete("f", "h", false)),
        (None, KvOperation::Delete(Delete { limit: 1, ..of(keys("g", "m")) })),
        (Some(DENIED), KvOperation::Delete(Delete { limit: 1, ..of(keys("g", "t")) })),
        (None, KvOperation::DisarmAlarm(Alarm { kind: AlarmKind::NoSpace, node: None })),
        (Some(DENIED), KvOperation::RaiseAlarm(Alarm { kind: AlarmKind::NoSpace, node: None })),
        (Some(DENIED), KvOperation::Compact { revision: 1 }),
        (Some(DENIED), KvOperation::Auth(AuthOperation::Disable)),
    ] {
        assert_eq!(database.refusal(operation.clone()).await, expected, "{operation:?}");
    }
}

#[tokio::test]
async fn put_whose_key_gets_a_versionstamp_needs_all_keys_with_its_prefix() {
    let database = Database::start().await;
    let stamped = |key: &str| KvOperation::Put(Put { versionstamp: Versionstamp::KeySuffix, ..put(key) });
    assert_eq!(database.refusal(stamped("n")).await, None);
    database.change(grant("r", PermissionKind::Write, KeyRange { key: "x".into(), range_end: None })).await;
    assert_eq!(database.refusal(KvOperation::Put(put("x"))).await, None);
    assert_eq!(database.refusal(stamped("x")).await, Some(DENIED));
}

#[tokio::test]
async fn every_part_of_a_transaction_is_checked_whichever_branch_is_executed() {
    let database = Database::start().await;
    let compare = |key: &str| Compare {
        keys: KeyRange { key: text(key).into(), range_end: None },
        target: CompareTarget::Version(7),
        result: CompareResult::Equal,
    };
    let previous = || KvOperation::Put(Put { return_previous: true, ..put("n") });
    let nested = |part| KvOperation::Txn(Txn { failure: vec![part], ..Txn::default() });
    let with = |success: Vec<KvOperation>, failure: Vec<KvOperation>| Txn {
        compare: vec![compare("b")],
        success,
        failure,
        ..Txn::default()
    };
    for (expected, txn) in [
        (None, with(vec![KvOperation::Put(put("n"))], vec![KvOperation::Range(range("a", None))])),
        (Some(DENIED), Txn { compare: vec![compare("n")], ..Txn::default() }),
        (Some(DENIED), with(vec![KvOperation::Put(put("b"))], vec![])),
        (Some(DENIED), with(vec![], vec![KvOperation::Range(range("n", None))])),
        (Some(DENIED), with(vec![previous()], vec![])),
        (Some(DENIED), with(vec![nested(nested(KvOperation::Put(put("b"))))], vec![])),
        (Some(DENIED), with(vec![], vec![nested(previous())])),
        (Some(DENIED), Txn { read_revision: 1, read_ranges: vec![keys("n", "o")], ..Txn::default() }),
    ] {
        assert_eq!(database.refusal(KvOperation::Txn(txn.clone())).await, expected, "{txn:?}");
    }
}

#[tokio::test]
async fn lease_with_keys_of_others_cannot_be_used_renewed_revoked_or_seen() {
    let database = Database::start().await;
    let root = Caller::user("root", database.database.auth().revision());
    let ann = database.ann();
    let with_lease = |key: &str| KvOperation::Put(Put { lease_id: 7, ..put(key) });
    assert_eq!(database.refusal(KvOperation::GrantLease { id: 7, ttl: 600 }).await, None);
    assert_eq!(database.refusal(with_lease("n")).await, None);
    assert!(database.database.keep_alive_as(&ann, 7).await.unwrap().is_some());
    assert_eq!(refusal(database.database.lease_keys_as(&ann, 7).await), Some(DENIED), "n is not readable");
    database.execute(&root, with_lease("zz")).await.unwrap();
    assert_eq!(database.refusal(with_lease("n")).await, Some(DENIED));
    let in_txn = KvOperation::Txn(Txn { failure: vec![with_lease("o")], ..Txn::default() });
    assert_eq!(database.refusal(in_txn).await, Some(DENIED));
    assert_eq!(refusal(database.database.keep_alive_as(&ann, 7).await), Some(DENIED));
    assert_eq!(database.refusal(KvOperation::RevokeLease { id: 7 }).await, Some(DENIED));
    assert_eq!(refusal(database.database.leases_as(&ann).await), Some(DENIED));
    assert_eq!(database.database.leases_as(&root).await.unwrap(), [7]);
    let outcome = database.database.time_to_live_as(&ann, 7, true).await;
    assert_eq!(refusal(outcome), Some(DENIED));
    assert!(database.database.time_to_live_as(&ann, 7, false).await.unwrap().is_some());
    // Without the key of another the lease is hers again.
    let delete = Delete { key: "zz".into(), ..Delete::default() };
    database.execute(&root, KvOperation::Delete(delete)).await.unwrap();
    assert_eq!(database.refusal(with_lease("o")).await, None);
    assert_eq!(database.refusal(KvOperation::RevokeLease { id: 7 }).await, None);
}

#[tokio::test]
async fn pages_of_a_range_end_when_the_permission_does() {
    let database = Database::start().await;
    let read = Range { limit: 0, ..range("a", Some("m")) };
    let ann = database.ann();
    let mut pages = database.database.range_pages_as(&ann, read, Consistency::Linearizable).await.unwrap();
    database.change(AuthOperation::RevokeRole { user: text("ann"), role: text("r") }).await;
    assert_eq!(refusal(pages.next().await), Some(DENIED));
}

/// A machine that applies commands as they are in the log, without the checks before.
struct Machine {
    machine: KvStateMachine,
    index: u64,
    dir: TempDir,
}

impl Machine {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let machine = KvStateMachine::open(dir.path(), NodeId(1), Durability::FromLog).unwrap();
        let mut machine = Self { machine, index: 0, dir };
        for operation in setup() {
            machine.apply(Caller::Server, None, KvOperation::Auth(operation)).unwrap();
        }
        machine
    }

    fn apply(
        &mut self,
        caller: Caller,
        session: Option<Session>,
        operation: KvOperation,
    ) -> Result<KvAnswer, KvRejection> {
        self.index += 1;
        let command = codec::encode(1, &KvCommand { session, operation, caller });
        let entry = Entry::command(LogId::new(1, self.index), command);
        let responses = self.machine.apply(&[entry]).unwrap();
        codec::decode("response", 1, &responses[0]).unwrap()
    }

    /// Applies commands in one batch. Returns the response to the last one.
    fn apply_together(&mut self, commands: &[(Caller, KvOperation)]) -> Result<KvAnswer, KvRejection> {
        let entry = |(caller, operation): &(Caller, KvOperation)| {
            self.index += 1;
            let (operation, caller) = (operation.clone(), caller.clone());
            let command = codec::encode(1, &KvCommand { session: None, operation, caller });
            Entry::command(LogId::new(1, self.index), command)
        };
        let entries: Vec<_> = commands.iter().map(entry).collect();
        let responses = self.machine.apply(&entries).unwrap();
        codec::decode("response", 1, responses.last().unwrap()).unwrap()
    }

    fn hash(&self) -> u32 {
        self.machine.executor().hash().unwrap().hash
    }
}

#[test]
fn command_that_was_admitted_before_a_change_is_applied_by_the_permissions_after_it() {
    let mut machine = Machine::new();
    let ann = Caller::user("ann", 9);
    machine.apply(ann.clone(), None, KvOperation::Put(put("n"))).unwrap();
    let revoke = AuthOperation::RevokeRole { user: text("ann"), role: text("r") };
    machine.apply(Caller::Server, None, KvOperation::Auth(revoke)).unwrap();
    let put = KvOperation::Put(put("n"));
    assert_eq!(machine.apply(ann.clone(), None, put.clone()), Err(DENIED.into()));
    for change in [AuthOperation::DeleteUser { user: text("ann") }, add_user("ann"), grant_role("ann", "r")] {
        machine.apply(Caller::Server, None, KvOperation::Auth(change)).unwrap();
    }
    let outdated = AuthRejection::OutdatedAdmission;
    assert_eq!(machine.apply(ann, None, put.clone()), Err(outdated.into()), "another user of this name");
    machine.apply(Caller::user("ann", 12), None, put).unwrap();
}

#[test]
fn changes_earlier_in_a_batch_count() {
    let mut machine = Machine::new();
    let ann = || Caller::user("ann", 9);
    let with_lease = |key: &str| KvOperation::Put(Put { lease_id: 7, ..put(key) });
    machine.apply(Caller::Server, None, KvOperation::GrantLease { id: 7, ttl: 600 }).unwrap();
    let attached = [(Caller::Server, with_lease("zz")), (ann(), with_lease("n"))];
    assert_eq!(machine.apply_together(&attached), Err(DENIED.into()));
    let detached = [(Caller::Server, KvOperation::Put(put("zz"))), (ann(), with_lease("n"))];
    machine.apply_together(&detached).unwrap();
    let revoke = AuthOperation::RevokeRole { user: text("ann"), role: text("r") };
    let revoked = [(Caller::Server, KvOperation::Auth(revoke)), (ann(), KvOperation::Put(put("n")))];
    assert_eq!(machine.apply_together(&revoked), Err(DENIED.into()));
}

#[tokio::test]
async fn names_and_keys_of_permissions_have_maximums() {
    let database = Database::start().await;
    let long = "x".repeat((16 << 10) + 1);
    for change in [
        add_user(&long[..1025]),
        AuthOperation::AddRole { role: text(&long[..1025]) },
        grant("r", PermissionKind::Read, keys(&long, "y")),
        grant("r", PermissionKind::Read, keys("a", &long)),
    ] {
        let refused = database.database.execute_operation(KvOperation::Auth(change)).await;
        assert!(matches!(refused, Err(KvError::Rejected(KvRejection::Invalid(_)))), "{refused:?}");
    }
    database.change(add_user(&long[..1024])).await;
}

#[test]
fn repetition_in_a_session_is_known_after_the_user_logged_in_again_but_not_by_another_user() {
    let mut machine = Machine::new();
    let ann = |revision| Caller::user("ann", revision);
    let opened = machine.apply(ann(9), None, KvOperation::OpenSession { sessions_max: 9 }).unwrap();
    let KvResult::OpenSession(client_id) = opened.result else { panic!() };
    let session = Some(Session { client_id, sequence: 1 });
    let first = machine.apply(ann(9), session, KvOperation::Put(put("n"))).unwrap();
    assert_eq!(machine.apply(ann(10), session, KvOperation::Put(put("n"))), Ok(first));
    let root = machine.apply(Caller::user("root", 10), session, KvOperation::Put(put("n")));
    assert_eq!(root, Err(KvRejection::NoSession { client_id }));
}

#[test]
fn session_of_another_user_is_not_used_up() {
    let mut machine = Machine::new();
    let root = Caller::user("root", 9);
    let opened = machine.apply(root.clone(), None, KvOperation::OpenSession { sessions_max: 9 }).unwrap();
    let KvResult::OpenSession(client_id) = opened.result else { panic!() };
    let session = |sequence| Some(Session { client_id, sequence });
    let ann = machine.apply(Caller::user("ann", 9), session(u64::MAX), KvOperation::Put(put("n")));
    assert_eq!(ann, Err(KvRejection::NoSession { client_id }));
    let path = machine.dir.path().to_owned();
    machine.apply(root.clone(), session(1), KvOperation::Put(put("n"))).unwrap();
    machine.machine.flush().unwrap();
    let Machine { machine: closed, index, dir } = machine;
    drop(closed);
    let reopened = KvStateMachine::open(&path, NodeId(1), Durability::FromLog).unwrap();
    let mut machine = Machine { machine: reopened, index, dir };
    let ann = machine.apply(Caller::user("ann", 9), session(2), KvOperation::Put(put("n")));
    assert_eq!(ann, Err(KvRejection::NoSession { client_id }), "also after a restart");
    machine.apply(root, session(2), KvOperation::Put(put("n"))).unwrap();
}

#[test]
fn user_that_opens_sessions_in_a_loop_does_not_remove_those_of_others() {
    let mut machine = Machine::new();
    let open = |machine: &mut Machine, user: &str| {
        let opened = machine.apply(Caller::user(user, 9), None, KvOperation::OpenSession { sessions_max: 5 });
        let KvResult::OpenSession(client_id) = opened.unwrap().result else { panic!() };
        client_id
    };
    let roots = open(&mut machine, "root");
    let anns: Vec<_> = (0..20).map(|_| open(&mut machine, "ann")).collect();
    let mut write = |user: &str, client_id: u64| {
        let session = Some(Session { client_id, sequence: 1 });
        machine.apply(Caller::user(user, 9), session, KvOperation::Put(put("n"))).map(drop)
    };
    write("root", roots).unwrap();
    write("ann", anns[19]).unwrap();
    let client_id = anns[15];
    assert_eq!(write("ann", client_id), Err(KvRejection::NoSession { client_id }));
}

#[test]
fn admission_ends_when_authentication_is_disabled_and_enabled_again() {
    let mut machine = Machine::new();
    let (ann, put) = (Caller::user("ann", 9), KvOperation::Put(put("n")));
    machine.apply(ann.clone(), None, put.clone()).unwrap();
    for change in [AuthOperation::Disable, AuthOperation::Enable { secret: AuthSecret(vec![2; 32].into()) }] {
        machine.apply(Caller::Server, None, KvOperation::Auth(change)).unwrap();
    }
    let outdated = AuthRejection::OutdatedAdmission;
    assert_eq!(machine.apply(ann, None, put.clone()), Err(outdated.into()));
    machine.apply(Caller::user("ann", 10), None, put).unwrap();
}

#[test]
fn users_and_roles_survive_a_restart_and_are_in_snapshots() {
    let mut machine = Machine::new();
    let mut stream = Vec::new();
    machine.machine.snapshot().unwrap().write_to(&mut stream).unwrap();
    let other = TempDir::new().unwrap();
    let mut restored = KvStateMachine::open(other.path(), NodeId(2), Durability::FromLog).unwrap();
    restored.restore(&mut &stream[..]).unwrap();
    assert_eq!(restored.executor().hash().unwrap().hash, machine.hash());
    let (hash, index, dir) = (machine.hash(), machine.index, machine.dir);
    machine.machine.flush().unwrap();
    drop(machine.machine);
    let reopened = KvStateMachine::open(dir.path(), NodeId(1), Durability::FromLog).unwrap();
    for machine in [restored, reopened] {
        let mut machine = Machine { machine, index, dir: TempDir::new().unwrap() };
        assert_eq!(machine.hash(), hash);
        let anonymous = machine.apply(Caller::Anonymous, None, KvOperation::Put(put("n")));
        assert_eq!(anonymous, Err(AuthRejection::NoUser.into()));
        let ann = Caller::user("ann", 9);
        machine.apply(ann.clone(), None, KvOperation::Put(put("n"))).unwrap();
        assert_eq!(machine.apply(ann, None, KvOperation::Put(put("b"))), Err(DENIED.into()));
    }
}

/// As after a crash: what is in memory is lost, and no log replays it yet.
#[test]
fn node_that_restarts_alone_knows_the_last_permissions() {
    let machine = Machine::new();
    let copy = TempDir::new().unwrap();
    copy_dir(machine.dir.path(), copy.path());
    let crashed = KvStateMachine::open(copy.path(), NodeId(1), Durability::FromLog).unwrap();
    let mut crashed = Machine { machine: crashed, index: machine.index, dir: copy };
    let anonymous = crashed.apply(Caller::Anonymous, None, KvOperation::Put(put("n")));
    assert_eq!(anonymous, Err(AuthRejection::NoUser.into()));
}

fn copy_dir(from: &std::path::Path, to: &std::path::Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir(&target).unwrap();
            copy_dir(&entry.path(), &target);
        } else if let Err(error) = std::fs::copy(entry.path(), target) {
            // RocksDB removes files that it does not need any more.
            assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}");
        }
    }
}
