#!/usr/bin/env bash
# The Rust etcd-client goes on sending calls to a member that is down, and each of these calls fails.
#
# Guess: connected to two members of which one is down, the client sends all calls to the one that is up, as the Go client
#   does; all of 20 reads succeed.
# Seen: a quarter to a half of the reads fail with UNAVAILABLE "tcp connect error". A failed connection counts as ready in
#   the balancer and is asked again and again; the client repeats nothing.
# Versions: etcd-client 0.21.1 with tonic 0.14.9 (crates.io), etcd 3.7.3 as the member that is up.
# Output seen:
#   one live and one dead endpoint: 12 of 40 reads failed, first with Unavailable: tcp connect error
#   the live endpoint alone: 0 of 40 reads failed
# Why it hits users: the reason to list three endpoints is that one may be down. With this client a cluster of three that
#   lost one member, or has one in a rolling restart, fails a good part of all calls for as long as it lasts.
# What kv-server should do: it cannot help from the server's side while the member is down. docs/etcd-clients.md says to
#   wrap calls of etcd-client in a retry on UNAVAILABLE (for writes with a compare that makes the repeat harmless), or to
#   give it one address that a load balancer with health checks serves.
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

#[tokio::main]
async fn main() {
    let endpoints: Vec<String> = std::env::args().skip(1).collect();
    let mut client = Client::connect(endpoints, None).await.expect("connect");
    let mut failed = 0;
    let mut first = String::new();
    for _ in 0..40 {
        if let Err(error) = client.get("k", None).await {
            failed += 1;
            if first.is_empty() {
                first = match error {
                    Error::GRpcStatus(status) => format!("{:?}: {}", status.code(), status.message()),
                    other => other.to_string(),
                };
            }
        }
    }
    println!("{failed} {first}");
}
EOF

CARGO_TARGET_DIR=$work/target cargo build --quiet --manifest-path "$work/client/Cargo.toml"

build_etcd server
start_etcd
# A port that nobody listens on: connections to it are refused.
dead=$(free_port)

read -r failed first < <("$work/target/debug/client" "http://127.0.0.1:$dead" "http://127.0.0.1:$port")
read -r alone _ < <("$work/target/debug/client" "http://127.0.0.1:$port")
echo "one live and one dead endpoint: $failed of 40 reads failed, first with $first"
echo "the live endpoint alone: $alone of 40 reads failed"
((alone == 0)) || fail "reads failed with the live endpoint alone"
((failed >= 4)) || fail "only $failed of 40 reads failed with a dead endpoint in the list"
[[ $first == "Unavailable: "* ]] || fail "the first error is $first"
