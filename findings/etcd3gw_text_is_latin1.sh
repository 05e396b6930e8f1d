#!/usr/bin/env bash
# The Python client etcd3gw writes text as Latin-1, so its non-ASCII keys are not those of any other client.
#
# Guess: text is stored as UTF-8, as by every other etcd client.
# Seen: put("clé", ...) stores the bytes 63 6c e9. etcdctl get clé, which asks for 63 6c c3 a9, finds nothing, and the two
#   keys exist side by side. Text outside Latin-1 raises UnicodeEncodeError.
# Versions: PyPI etcd3gw 2.7.0, etcd 3.7.3 and etcdctl 3.7.3.
# Output seen:
#   key as stored by etcd3gw: 636ce9
#   etcdctl get clé: 0 keys
#   after etcdctl put clé: 2 keys
#   put of text in Japanese: UnicodeEncodeError
# Why it hits users: a program in Python shares a prefix with programs in Go or Java. Names of people, hosts and files with
#   an accent are invisible to the other side, and code that decodes keys as UTF-8 fails on them.
# What kv-server should do: keep keys and values as bytes everywhere, show keys that are not UTF-8 escaped instead of
#   failing, and say in docs/etcd-clients.md that etcd3gw must be given text.encode("utf-8").
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
count() { ctl get --prefix "$1" --count-only -w fields | sed -n 's/^"Count" : //p'; }

python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check etcd3gw==2.7.0
cat > "$work/put.py" <<'EOF'
import sys
from etcd3gw import client

etcd = client(host="127.0.0.1", port=int(sys.argv[1]), api_path="/v3/")
etcd.put("clé", "1")
try:
    etcd.put("鍵", "1")
    print("put of text in Japanese: stored")
except UnicodeEncodeError:
    print("put of text in Japanese: UnicodeEncodeError")
EOF
"$work/venv/bin/python" "$work/put.py" "$port" > "$work/japanese"

stored=$(ctl get --prefix cl --keys-only | head -n 1 | od -An -tx1 | tr -d ' \n')
stored=${stored%0a}
echo "key as stored by etcd3gw: $stored"
echo "etcdctl get clé: $(count clé) keys" | tee "$work/utf8"
ctl put clé 2 > /dev/null
echo "after etcdctl put clé: $(count cl) keys" | tee "$work/both"
cat "$work/japanese"

[[ $stored == 636ce9 ]] || fail "the key is stored as $stored"
grep -q ': 0 keys' "$work/utf8" || fail "the key is found by its UTF-8 form"
grep -q ': 2 keys' "$work/both" || fail "the two keys are not apart"
grep -q 'UnicodeEncodeError' "$work/japanese" || fail "text outside Latin-1 is accepted"
