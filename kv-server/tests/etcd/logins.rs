//! Effects of logins on streams that are open, and the log, which must not show passwords.

use kv_etcd_api::etcdserverpb::{
    AuthUserChangePasswordRequest, AuthUserDeleteRequest, WatchCancelRequest, watch_request::RequestUnion,
};
use kv_store_client::{
    Connection,
    admin::{AuthAction, AuthChange},
    idl::LoginRequest,
    protocol::{Call, Reply},
};

use super::{
    auth::{Client, logged_in, started, watch, watching},
    clients::{Alone, Watching, put},
};

async fn change_password(root: &Client, name: &str, password: &str) {
    let (name, password) = (name.to_owned(), password.to_owned());
    let change = AuthUserChangePasswordRequest { name, password, ..Default::default() };
    root.auth().user_change_password(change).await.unwrap();
}

async fn cancel(stream: &mut Watching, watch_id: i64) {
    stream.ask(RequestUnion::CancelRequest(WatchCancelRequest { watch_id })).await;
    assert!(stream.next().await.canceled);
}

#[tokio::test]
async fn user_that_was_deleted_or_got_another_password_opens_no_watch_on_an_old_stream() {
    let (alone, _, ann, root) = started().await;
    let port = alone.server.port;
    let mut old = watching(port, &ann).await;
    let first = old.create(watch("a", "m")).await;
    cancel(&mut old, first.watch_id).await;
    change_password(&root, "ann", "new").await;
    let refused = old.create(watch("a", "m")).await;
    let invalid = "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token";
    assert_eq!((refused.canceled, &refused.cancel_reason[..]), (true, invalid));

    let again = Client::of(port, "ann", "new").await;
    let mut stream = watching(port, &again).await;
    let first = stream.create(watch("a", "m")).await;
    assert!(!first.canceled);
    cancel(&mut stream, first.watch_id).await;
    root.auth().user_delete(AuthUserDeleteRequest { name: "ann".to_owned() }).await.unwrap();
    assert!(stream.create(watch("a", "m")).await.canceled);
    root.add_user("ann", "new", "r").await;
    let refused = stream.create(watch("a", "m")).await;
    assert_eq!((refused.canceled, &refused.cancel_reason[..]), (true, invalid), "another user of this name");
}

#[tokio::test]
async fn passwords_hashes_and_tokens_are_not_logged_at_level_debug() {
    let alone = Alone::start_with(&["--log=debug"]).await;
    let port = alone.server.port;
    let nobody = Client::new(port).await;
    nobody.enable().await;
    let root = Client::of(port, "root", "secret").await;
    change_password(&root, "root", "Passw0rd-of-etcd").await;
    let root = Client::of(port, "root", "Passw0rd-of-etcd").await;
    root.kv().put(put("a", "1")).await.unwrap();
    assert!(nobody.login("root", "Passw0rd-that-is-wrong").await.is_err());
    let thrift: Connection = logged_in(port, "root", "Passw0rd-of-etcd").await;
    let user = || Some("bob".to_owned());
    let add =
        AuthChange::new(AuthAction::ADD_USER, user(), None, Some("Passw0rd-of-thrift".to_owned()), None);
    thrift.call(Call::ChangeAuth(add)).await.unwrap().unwrap();
    let mut tokens = vec![root.token.clone().unwrap()];
    for password in ["Passw0rd-of-thrift", "Passw0rd-that-is-wrong"] {
        let request = LoginRequest { user: user(), password: Some(password.to_owned()), token: None };
        if let Ok(Reply::Login(response)) = thrift.call(Call::Login(request)).await.unwrap() {
            tokens.push(response.token);
        }
    }
    assert_eq!(tokens.len(), 2);
    let log = alone.server.log();
    assert!(log.contains("DEBUG"), "{log}");
    for secret in ["Passw0rd", "$argon2id$"].into_iter().chain(tokens.iter().map(String::as_str)) {
        assert!(!log.contains(secret), "{secret}: {log}");
    }
}
