#!/usr/bin/env bash
# When the server process dies, calls and streams in flight end with UNKNOWN in tonic clients, not with UNAVAILABLE.
#
# Guess: the error of a call in flight has the code UNAVAILABLE, as npm's grpc-js gives it.
# Seen: the put has the code Unknown, "transport error"; an open watch ends with Unknown, "h2 protocol error". A call that
#   begins just then can be Cancelled, "operation was canceled". Only calls that begin later, when the connection is
#   refused, are Unavailable.
# Versions: etcd-client 0.21.1 with tonic 0.14.9 (crates.io), etcd 3.7.3.
# Output seen:
#   put in flight: Unknown: transport error
#   open watch: Unknown: h2 protocol error: error reading a body from connection
#   put a second later: Unavailable: tcp connect error
# Why it hits users: loops that repeat on UNAVAILABLE (the code that gRPC names for it) give up at just the failure that
#   they were written for, and dashboards count a killed server under the code of program errors.
# What kv-server should do: our own clients take a lost connection as "unknown whether it was done" by its own error, not by
#   a gRPC code. docs/etcd-clients.md says that with tonic UNKNOWN or CANCELLED with a source (a transport error) is to be
#   handled like UNAVAILABLE: resume the watch, and repeat a write only if it is harmless to do it twice.
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
use etcd_client::{Client, Error};
use std::io::BufRead;

fn describe<T>(result: Result<T, Error>) -> String {
    match result {
        Ok(_) => "OK".to_string(),
        Err(Error::GRpcStatus(status)) => format!("{:?}: {}", status.code(), status.message()),
        Err(other) => other.to_string(),
    }
}

// Waits for a line on standard input: the script's word to go on.
fn wait_for_script() {
    std::io::stdin().lock().lines().next();
}

#[tokio::main]
async fn main() {
    let endpoint = std::env::args().nth(1).expect("endpoint");
    let mut client = Client::connect([endpoint], None).await.expect("connect");
    client.put("k", "1", None).await.expect("first put");
    let mut watch = client.watch("k", None).await.expect("watch");
    watch.message().await.expect("created");
    println!("ready");
    wait_for_script();
    println!("put in flight: {}", describe(client.put("k", "2", None).await));
    println!("open watch: {}", describe(watch.message().await));
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    println!("put a second later: {}", describe(client.put("k", "3", None).await));
}
EOF

CARGO_TARGET_DIR=$work/target cargo build --quiet --manifest-path "$work/client/Cargo.toml"

build_etcd server
start_etcd

mkfifo "$work/go"
"$work/target/debug/client" "http://127.0.0.1:$port" < "$work/go" > "$work/out" 2>&1 &
client=$!
pids+=("$client")
exec 8> "$work/go"
for _ in $(seq 100); do
  if grep -q ready "$work/out"; then break; fi
  sleep 0.1
done
# The server is stopped so that the put is in flight, and then killed.
kill -STOP "$etcd_pid"
echo go >&8
sleep 1
kill -KILL "$etcd_pid"
wait "$etcd_pid" 2>/dev/null || true
wait "$client" || true
exec 8>&-

grep -v ready "$work/out"
grep -q '^put in flight: Unknown: ' "$work/out" || fail "the put in flight is not Unknown"
grep -q '^open watch: Unknown: ' "$work/out" || fail "the open watch does not end with Unknown"
grep -q '^put a second later: Unavailable: ' "$work/out" || fail "a put a second later is not Unavailable"
