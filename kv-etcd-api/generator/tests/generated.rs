//! The generated code is what the proto files say. `UPDATE_ETCD_API=1` writes it anew.

use std::{fs, path::Path};

const FILES: [&str; 3] = [
    "etcd/api/etcdserverpb/rpc.proto",
    "etcd/server/etcdserver/api/v3lock/v3lockpb/v3lock.proto",
    "etcd/server/etcdserver/api/v3election/v3electionpb/v3election.proto",
];
/// Messages with passwords or tokens, whose `Debug` the crate implements without them.
const SECRET: [&str; 4] = [
    "etcdserverpb.AuthenticateRequest",
    "etcdserverpb.AuthenticateResponse",
    "etcdserverpb.AuthUserAddRequest",
    "etcdserverpb.AuthUserChangePasswordRequest",
];
/// Packages of options only, for which no code is needed.
const WITHOUT_CODE: [&str; 3] =
    ["google.api.rs", "grpc.gateway.protoc_gen_openapiv2.options.rs", "versionpb.rs"];

#[test]
fn generated_code_is_current() {
    // At run time: a cached test may have been compiled in another checkout.
    let package = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    let root = Path::new(&package).join("..");
    let made = tempfile::tempdir().unwrap();
    generate(&root.join("proto"), made.path());
    let committed = root.join("src/generated");
    let mut names: Vec<_> =
        fs::read_dir(made.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    for name in names {
        let new = fs::read(made.path().join(&name)).unwrap();
        let place = committed.join(&name);
        if std::env::var_os("UPDATE_ETCD_API").is_some() {
            fs::create_dir_all(&committed).unwrap();
            fs::write(&place, new).unwrap();
        } else {
            let old = fs::read(&place).unwrap_or_default();
            assert!(
                old == new,
                "{} is not current: run UPDATE_ETCD_API=1 cargo test -p kv-etcd-api-generator",
                place.display()
            );
        }
    }
}

fn generate(protos: &Path, out: &Path) {
    let descriptors = protox::compile(FILES, [protos]).unwrap();
    // Comments and positions are for people, and twice the size.
    let mut small = protox::Compiler::new([protos]).unwrap();
    small.include_imports(true).include_source_info(false).open_files(FILES).unwrap();
    tonic_prost_build::configure()
        .build_transport(false)
        .bytes(".")
        .skip_debug(SECRET)
        .out_dir(out)
        .compile_fds(descriptors)
        .unwrap();
    for name in WITHOUT_CODE {
        let _ = fs::remove_file(out.join(name));
    }
    fs::write(out.join("descriptors.bin"), small.encode_file_descriptor_set()).unwrap();
    // An empty message set would pass every comparison.
    assert!(fs::metadata(out.join("descriptors.bin")).unwrap().len() > 10_000);
}
