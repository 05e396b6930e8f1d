#!/usr/bin/env bash
# One open watch makes a stopping etcd turn away everybody else for seven seconds before it ends.
#
# Guess: after SIGTERM etcd ends its streams and is gone within a second, as it is without clients.
# Seen: without an open stream it is gone in some milliseconds. With one idle watch it closes its listener at once, so that
#   new connections are refused, and then waits for the watch for 5 s plus two election timeouts: 7 s by default, 11 s with
#   --election-timeout 3000, longer than the 10 s that docker stop allows.
# Versions: etcd 3.7.3 and etcdctl 3.7.3, from the Go module proxy.
# Output seen:
#   no stream: 0.0 s
#   one watch: 7.0 s, new connections refused meanwhile
#   one watch, election timeout 3 s: 11.0 s
# Why it hits users: every real cluster has watches open (Kubernetes, Patroni, CoreDNS), so each step of a rolling restart
#   has these seconds, in which clients that know only this member fail. A unit or container with a shorter grace period
#   kills the member in the middle of its stop.
# What kv-server should do: at SIGTERM transfer leadership first, then end watches and keep-alives at once with UNAVAILABLE
#   (clients resume elsewhere), finish the unary calls in hand within a bound, and be gone within one or two seconds
#   whatever streams are open.
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
ctl() { "$work/etcdctl" --endpoints "127.0.0.1:$port" "$@"; }

# Stops the server with SIGTERM and sets stop_time to the tenths of a second that it took. Sets refused to yes if a new
# connection is refused one second after the signal.
stop_etcd() {
  local from to
  from=$(date +%s%N)
  kill -TERM "$etcd_pid"
  refused=no
  if [[ ${1:-} == probe ]]; then
    sleep 1
    if ! (exec 3<> "/dev/tcp/127.0.0.1/$port") 2>/dev/null; then refused=yes; fi
    if ! kill -0 "$etcd_pid" 2>/dev/null; then fail "the server had ended a second after SIGTERM, with a watch open"; fi
  fi
  wait "$etcd_pid" 2>/dev/null || true
  to=$(date +%s%N)
  stop_time=$(((to - from) / 100000000))
}
in_seconds() { echo "$((stop_time / 10)).$((stop_time % 10)) s"; }
open_watch() {
  ctl watch idle > "$work/watch" 2>&1 &
  watch_pid=$!
  pids+=("$watch_pid")
  # The watch is open when it shows a write.
  for _ in $(seq 50); do
    ctl put idle 1 > /dev/null
    sleep 0.2
    if grep -q PUT "$work/watch"; then return; fi
  done
  fail "the watch did not start"
}
close_watch() {
  kill -KILL "$watch_pid" 2>/dev/null || true
  wait "$watch_pid" 2>/dev/null || true
}

start_etcd
ctl put idle 1 > /dev/null
stop_etcd
echo "no stream: $(in_seconds)"
((stop_time < 30)) || fail "a stop without streams took $(in_seconds)"

start_etcd
open_watch
stop_etcd probe
close_watch
echo "one watch: $(in_seconds), new connections refused meanwhile: $refused"
((stop_time >= 60 && stop_time < 100)) || fail "a stop with one watch took $(in_seconds), not about 7 s"
[[ $refused == yes ]] || fail "the stopping server still took new connections"

start_etcd --election-timeout 3000 --heartbeat-interval 100
open_watch
stop_etcd probe
close_watch
echo "one watch, election timeout 3 s: $(in_seconds)"
((stop_time >= 100 && stop_time < 140)) || fail "with an election timeout of 3 s it took $(in_seconds), not about 11 s"
