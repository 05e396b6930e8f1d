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
