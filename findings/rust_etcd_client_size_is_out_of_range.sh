#!/usr/bin/env bash
# In the Rust etcd-client a range over 4 MiB fails with OUT_OF_RANGE, the code that in etcd means "compacted".
#
# Guess: the client raises the gRPC limit for what it receives, as the Go client does, so the range succeeds.
# Seen: the limit is tonic's 4 MiB. The code of the error is OutOfRange, which etcd itself uses for "required revision has
#   been compacted" and "required revision is a future revision"; grpc-java, grpcio and grpc-js say RESOURCE_EXHAUSTED.
# Versions: etcd-client 0.21.1 with tonic 0.14.9 (crates.io), etcd 3.7.3 and etcdctl 3.7.3.
# Output seen:
#   etcdctl: 8 keys
#   etcd-client, 8 keys of 1 MiB: OutOfRange: Error, decoded message length too large: found 8388805 bytes, the limit is: 4194304 bytes
#   etcd-client, compacted revision: OutOfRange: etcdserver: mvcc: required revision has been compacted
# Why it hits users: a cache that lists and watches treats OUT_OF_RANGE as "list again from the newest revision". Once its
#   prefix has grown over 4 MiB it lists for ever, and each try makes the server send everything.
# What kv-server should do: docs/etcd-clients.md says to call max_decoding_message_size on the kv and watch clients, or to
#   page with limit. Our own clients tell the two apart by a type of their own, not by the code.
set -euo pipefail

work=$(mktemp -d)
pids=()
clean_up() {
  for pid in "${pids[@]:-}"; do
    if [[ -n $pid ]]; then { kill -KILL "$pid" && wait "$pid"; } 2>/dev/null || true; fi
  done
  rm -rf "$work"
}
trap clean_up EXIT
fail() {
  echo "no longer as stated: $*" >&2
  exit 1
}

# Builds the named programs of etcd (server, etcdctl) from the Go module proxy.
build_etcd() {
  mkdir -p "$work/etcd-build"
  cd "$work/etcd-build"
  printf 'module build\n\ngo 1.26\n' > go.mod
  for module in "$@"; do
    go get "go.etcd.io/etcd/$module/v3@v3.7.3" 2> "$work/go.log" || { cat "$work/go.log" >&2; exit 2; }
    go build -o "$work/${module/server/etcd}" "go.etcd.io/etcd/$module/v3"
  done
  cd "$work"
}

free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# Starts one etcd on loopback, with further flags "$@", and sets port and etcd_pid.
start_etcd() {
  port=${port:-$(free_port)}
  peer_port=${peer_port:-$(free_port)}
  "$work/etcd" --data-dir "$work/data" --log-level error \
    --listen-client-urls "http://127.0.0.1:$port" --advertise-client-urls "http://127.0.0.1:$port" \
    --listen-peer-urls "http://127.0.0.1:$peer_port" --initial-advertise-peer-urls "http://127.0.0.1:$peer_port" \
    --initial-cluster "default=http://127.0.0.1:$peer_port" "$@" >> "$work/etcd.log" 2>&1 &
  etcd_pid=$!
  pids+=("$etcd_pid")
  for _ in $(seq 150); do
    if (exec 3<> "/dev/tcp/127.0.0.1/$port") 2>/dev/null; then return; fi
    sleep 0.2
  done
  cat "$work/etcd.log" >&2
  echo "etcd did not start" >&2
  exit 2
}

for name in "${!ETCD@}"; do unset "$name"; done

# etcd-client's build asks for protoc; PyPI's grpcio-tools has one.
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check grpcio-tools==1.85.1
printf '#!/bin/sh\nexec "%s" -m grpc_tools.protoc "$@"\n' "$work/venv/bin/python" > "$work/protoc"
chmod +x "$work/protoc"
export PROTOC=$work/protoc

mkdir -p "$work/client/src"
cat > "$work/client/Cargo.toml" <<'EOF'
[package]
name = "client"
version = "0.1.0"
edition = "2021"

[dependencies]
etcd-client = "=0.21.1"
tokio = { version = "1", features = ["full"] }
tonic = "=0.14.9"

[profile.dev]
debug = false
EOF

cat > "$work/client/src/main.rs" <<'EOF'
use etcd_client::{Client, Error, GetOptions};

#[tokio::main]
async fn main() {
    let endpoint = std::env::args().nth(1).expect("endpoint");
    let mut client = Client::connect([endpoint], None).await.expect("connect");
    let all = GetOptions::new().with_prefix();
    let old = GetOptions::new().with_prefix().with_revision(2);
    for (what, options) in [("8 keys of 1 MiB", all), ("compacted revision", old)] {
        match client.get("big/", Some(options)).await {
            Ok(response) => println!("etcd-client, {what}: {} keys", response.kvs().len()),
            Err(Error::GRpcStatus(status)) => {
                println!("etcd-client, {what}: {:?}: {}", status.code(), status.message())
            }
            Err(other) => println!("etcd-client, {what}: {other}"),
        }
    }
}
EOF

CARGO_TARGET_DIR=$work/target cargo build --quiet --manifest-path "$work/client/Cargo.toml"

build_etcd server etcdctl
start_etcd
ctl() { "$work/etcdctl" --endpoints "127.0.0.1:$port" "$@"; }

head -c 1048576 /dev/zero | tr '\0' v > "$work/value"
for i in 1 2 3 4 5 6 7 8; do ctl put "big/$i" < "$work/value" > /dev/null; done
ctl compaction 4 > /dev/null
echo "etcdctl: $(ctl get --prefix big/ | grep -c '^big/') keys" | tee "$work/out"
"$work/target/debug/client" "http://127.0.0.1:$port" | tee -a "$work/out"

grep -q '^etcdctl: 8 keys$' "$work/out" || fail "the Go client did not get 8 keys"
grep -q '8 keys of 1 MiB: OutOfRange: .*4194304' "$work/out" || fail "the large range is not OutOfRange by a limit of 4 MiB"
grep -q 'compacted revision: OutOfRange: .*compacted' "$work/out" || fail "a compacted revision is not OutOfRange"
