#!/usr/bin/env bash
# etcdctl lock lets its command run on after the lock was lost, and still exits 0.
#
# Guess: when the lease behind the lock ends while the command runs, etcdctl ends the command, or at least exits non-zero
#   and says that the lock was lost.
# Seen: nothing happens. The command runs to its end while another etcdctl holds the same lock; etcdctl exits 0 and prints
#   no warning. (A non-zero exit of the command itself is passed on.)
# Versions: etcd 3.7.3 and etcdctl 3.7.3, from the Go module proxy.
# Output seen:
#   first: start
#   second: start
#   second: exit code 0
#   first: end
#   first: exit code 0
# Why it hits users: etcdctl lock guards cron jobs and migrations. A lease ends when the client's machine sleeps or is cut
#   off for longer than the TTL, when a server was away that long, or when an operator revokes it. Then two jobs run at once
#   and both report success.
# What kv-server should do: a lock command of its own ends the command (SIGTERM, then SIGKILL) when the lease ends, and
#   exits with a code of its own. docs/etcd-clients.md says that the guarded command must check a fencing token itself, for
#   example with a transaction that compares the create revision of the lock's key.
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

build_etcd server etcdctl
start_etcd
ctl() { "$work/etcdctl" --endpoints "127.0.0.1:$port" "$@"; }

# first: holds the lock; its command works for 6 seconds.
{
  set +e
  ctl lock guarded -- sh -c 'echo "first: start"; sleep 6; echo "first: end"'
  echo "first: exit code $?"
} > "$work/first" 2>&1 &
first=$!
for _ in $(seq 50); do
  if grep -q 'first: start' "$work/first"; then break; fi
  sleep 0.1
done
lease=$(ctl lease list | tail -n 1)
ctl lease revoke "$lease" > /dev/null

# second: gets the lock at once, while the command of the first still runs.
timeout 5 "$work/etcdctl" --endpoints "127.0.0.1:$port" lock guarded -- echo 'second: start' > "$work/second" \
  || fail "a second etcdctl did not get the lock whose lease had ended"
if grep -q 'first: e' "$work/first"; then fail "the first command ended when its lease ended: $(cat "$work/first")"; fi
echo 'second: exit code 0' >> "$work/second"
wait "$first"

cat "$work/second" "$work/first"
grep -q '^first: end$' "$work/first" || fail "the command was ended before it was done"
grep -q '^first: exit code 0$' "$work/first" || fail "etcdctl reported the loss of the lock by its exit code"
if grep -q -i -E 'lease|lost|expired' "$work/first"; then fail "etcdctl said that the lock was lost"; fi
