//! The generated messages have the bytes that Protocol Buffers prescribes.

use prost::Message;

#[test]
fn bytes_of_a_put_are_those_of_the_specification() {
    // Field 1 and 2 are bytes, 3 is an int64: tags 0x0a, 0x12, 0x18.
    let put = kv_etcd_api::etcdserverpb::PutRequest {
        key: "k".into(),
        value: "vv".into(),
        lease: 5,
        ..Default::default()
    };
    assert_eq!(put.encode_to_vec(), [0x0a, 1, b'k', 0x12, 2, b'v', b'v', 0x18, 5]);
}

#[test]
fn passwords_and_tokens_are_not_shown() {
    use kv_etcd_api::etcdserverpb::{
        AuthUserAddRequest, AuthUserChangePasswordRequest, AuthenticateRequest, AuthenticateResponse,
    };
    let (name, secret) = (|| "ann".to_owned(), || "Secret".to_owned());
    for shown in [
        format!("{:?}", AuthenticateRequest { name: name(), password: secret() }),
        format!("{:?}", AuthenticateResponse { header: None, token: secret() }),
        format!(
            "{:?}",
            AuthUserAddRequest { password: secret(), hashed_password: secret(), ..Default::default() }
        ),
        format!(
            "{:?}",
            AuthUserChangePasswordRequest { name: name(), password: secret(), hashed_password: secret() }
        ),
    ] {
        assert!(!shown.contains("Secret") && shown.starts_with("Auth"), "{shown}");
    }
}
