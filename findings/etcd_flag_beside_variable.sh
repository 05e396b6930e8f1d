#!/usr/bin/env bash
# etcd and etcdctl refuse to run when a flag is given and its environment variable is set, even to the same value.
#
# Guess: the flag wins, as in most programs, with a warning at most. For etcdctl the guess was not written down before; the
#   command that showed it was typed on it.
# Seen: both end at once with exit code 1 and a log line "conflicting environment variable is shadowed by corresponding
#   command-line flag", also if both say the same.
# Versions: etcd 3.7.3 and etcdctl 3.7.3, from the Go module proxy.
# Output seen:
#   etcdctl, other value: exit code 1, conflicting environment variable is shadowed by corresponding command-line flag
#   etcdctl, same value: exit code 1, conflicting environment variable is shadowed by corresponding command-line flag
#   etcd: exit code 1, conflicting environment variable is shadowed by corresponding command-line flag
# Why it hits users: a container image or a shell profile sets ETCD_... or ETCDCTL_ENDPOINTS, and somebody adds one flag to
#   override it. The server then does not start; in scripts every etcdctl call fails.
# What kv-server does: a setting is taken from the first of flag, environment variable, file and default; a variable beside
#   a flag is no error. docs/configuration.md has the order.
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
text='conflicting environment variable is shadowed by corresponding command-line flag'

# Runs "$@" and checks that it is refused with the text.
check_refused() {
  local what=$1 code=0
  shift
  timeout 20 "$@" > "$work/out" 2>&1 || code=$?
  if ((code != 1)) || ! grep -q "$text" "$work/out"; then
    fail "$what: exit code $code: $(head -c 300 "$work/out")"
  fi
  echo "$what: exit code $code, $text"
}

"$work/etcdctl" --endpoints "127.0.0.1:$port" put k v > /dev/null
check_refused 'etcdctl, other value' \
  env "ETCDCTL_ENDPOINTS=127.0.0.1:1" "$work/etcdctl" --endpoints "127.0.0.1:$port" get k
check_refused 'etcdctl, same value' \
  env "ETCDCTL_ENDPOINTS=127.0.0.1:$port" "$work/etcdctl" --endpoints "127.0.0.1:$port" get k
check_refused 'etcd' env ETCD_NAME=a "$work/etcd" --name b --data-dir "$work/other"
