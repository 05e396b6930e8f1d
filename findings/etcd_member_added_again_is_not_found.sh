#!/usr/bin/env bash
# A member of etcd that is removed and added again at its peer URL within a second is refused with "member not found".
#
# Guess: MemberAdd after a successful MemberRemove of the same peer URL adds a member with a new id, as it does a second later.
# Seen: MemberAdd answers NotFound "etcdserver: member not found". The id is made of the peer URL, the name of the cluster and the
#   time in whole seconds, so that it is the id of the removed member, which may never come back.
# Versions: etcd 3.7.3.
# Output seen:
#   removed, and added again at once: etcdserver: member not found
#   a second later: added with another id
# Why it hits users: a program that replaces the disk of a member removes it and adds it again in one go, and is told that a member
#   which it wants to add does not exist. A test or an operator of Kubernetes that repeats on "unavailable" only gives up.
# What kv-server should do: choose ids that no member had before, whenever it is asked (it does: kv-server/src/members.rs).
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

build_etcd server
start_etcd
call() { curl --silent --show-error "http://127.0.0.1:$port/v3/$1" --data "$2"; }
add() { call cluster/member/add "{\"peerURLs\":[\"$url\"],\"isLearner\":true}"; }
id_of() { sed -n 's/.*"member":{"ID":"\([0-9]*\)".*/\1/p'; }

# The second may end between the two calls: then with another URL once more.
for attempt in 1 2 3 4 5; do
  url="http://127.0.0.1:$(free_port)"
  # Starts with a second that is new.
  second=$(date +%s)
  while [[ $(date +%s) == "$second" ]]; do sleep 0.01; done
  first=$(add | id_of)
  call cluster/member/remove "{\"ID\":\"$first\"}" > /dev/null
  again=$(add)
  if [[ $again == *'"error"'* || $again == *'"message"'* ]]; then break; fi
  call cluster/member/remove "{\"ID\":\"$(id_of <<< "$again")\"}" > /dev/null
done
message=$(sed -n 's/.*"message":"\([^"]*\)".*/\1/p' <<< "$again")
sleep 1.1
later=$(add | id_of)

echo "removed, and added again at once: ${message:-added}"
echo "a second later: ${later:+added with $([[ $later == "$first" ]] && echo the same || echo another) id}"

[[ $message == "etcdserver: member not found" ]] || fail "it is answered ${message:-with success}"
[[ -n $later && $later != "$first" ]] || fail "a second later it is not added with another id"
