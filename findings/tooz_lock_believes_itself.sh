#!/usr/bin/env bash
# A tooz lock on etcd still says acquired, and its heartbeat True, when another process has held it for seconds.
#
# Guess: once the lease is over, lock.acquired is False, and so is what release() returns.
# Seen: acquired stays True, on both sides, and heartbeat() returns True for the process that lost the lock. Only release()
#   tells, by returning False.
# Versions: PyPI tooz 9.1.0 with etcd3gw 2.7.0, etcd 3.7.3.
# Output seen:
#   after the lease is over: first.acquired True
#   second.acquire True
#   first.acquired True, second.acquired True
#   first.heartbeat True
#   first.release False
# Why it hits users: a service that looks at lock.acquired before its work, and keeps the lock with heartbeat(), goes on
#   beside its successor after a pause longer than lock_timeout (30 s by default). tooz is what OpenStack's services use.
# What kv-server should do: answer a keep-alive of an unknown lease with TTL 0 and nothing else, as etcd does (the clients'
#   only signal), and name tooz in docs/etcd-clients.md: fence the guarded writes, since neither flag tells.
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

python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check tooz==9.1.0 etcd3gw==2.7.0
cat > "$work/lock.py" <<'EOF'
import sys
import time
from tooz import coordination

def start(name):
    url = f"etcd3+http://127.0.0.1:{sys.argv[1]}?lock_timeout=3"
    coordinator = coordination.get_coordinator(url, name)
    coordinator.start()
    return coordinator

first = start(b"first").get_lock(b"job")
second = start(b"second").get_lock(b"job")
assert first.acquire()
# The first process is paused: no heartbeat for longer than the lock's time-out.
time.sleep(7)
print("after the lease is over: first.acquired", first.acquired)
print("second.acquire", second.acquire(blocking=False))
print(f"first.acquired {first.acquired}, second.acquired {second.acquired}")
print("first.heartbeat", first.heartbeat())
print("first.release", first.release())
EOF
"$work/venv/bin/python" "$work/lock.py" "$port" | tee "$work/out"

grep -q '^second.acquire True$' "$work/out" || fail "the second process did not get the lock"
grep -q '^first.acquired True, second.acquired True$' "$work/out" || fail "acquired is not True on both sides"
grep -q '^first.heartbeat True$' "$work/out" || fail "heartbeat tells that the lock was lost"
grep -q '^first.release False$' "$work/out" || fail "release does not tell that the lock was lost"
