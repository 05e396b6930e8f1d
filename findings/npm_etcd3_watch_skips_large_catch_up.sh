#!/usr/bin/env bash
# npm etcd3 drops a whole catch-up without an error event when etcd sends more than 4 MiB of it at once.
#
# Guess: the watcher emits "error" and ends, as the response is larger than grpc-js takes.
# Seen: etcd sends the eight missed events as one message of 8 MiB; grpc-js refuses it; the watcher reconnects by itself and
#   asks for the revision after the newest header it has seen, which is that of "created". No "put" of the eight comes, and
#   no "error" either. A later put comes as if nothing had been missed.
# Versions: npm etcd3 1.1.2, etcd 3.7.3 and etcdctl 3.7.3.
# Output seen:
#   disconnected: 8 RESOURCE_EXHAUSTED: Received message larger than max (8388836 vs 4194304)
#   disconnected: The etcd watch stream was unexpectedly ended
#   connected: start_revision 10
#   put: big/later
#   events of the eight: 0, error events: 0
# Why it hits users: a program that resumes from a stored revision after a restart believes that it has seen everything.
#   Values of half a megabyte, or a thousand of some kilobytes, suffice.
# What kv-server should do: send the catch-up of a watch in responses well below 4 MiB, cut between revisions, whatever the
#   number of revisions, and put into each header no newer revision than that of the last event delivered so far, also in
#   the header of "created".
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

mkdir "$work/npm"
cd "$work/npm"
npm init --yes > /dev/null
npm install --silent --no-audit --no-fund etcd3@1.1.2 > /dev/null

head -c 1048576 /dev/zero | tr '\0' v > "$work/value"
for i in 1 2 3 4 5 6 7 8; do ctl put "big/$i" < "$work/value" > /dev/null; done

cat > watch.js <<'EOF'
const { Etcd3 } = require('etcd3');
const client = new Etcd3({ hosts: `127.0.0.1:${process.argv[2]}` });
let missed = 0;
let errors = 0;

async function main() {
  // The first of the eight puts has revision 2.
  const watcher = await client.watch().prefix('big/').startRevision('2').create();
  watcher.on('error', () => { errors += 1; });
  watcher.on('disconnected', (error) => console.log(`disconnected: ${error.message}`));
  watcher.on('connected', () => console.log(`connected: start_revision ${watcher.request.start_revision}`));
  watcher.on('put', (kv) => {
    const key = kv.key.toString();
    if (key === 'big/later') {
      console.log(`put: ${key}`);
      console.log(`events of the eight: ${missed}, error events: ${errors}`);
      process.exit(0);
    }
    missed += 1;
  });
  setTimeout(() => client.put('big/later').value('x').exec(), 4000);
  setTimeout(() => { console.log('no later event'); process.exit(0); }, 20000);
}
main();
EOF
node watch.js "$port" | tee "$work/out"

grep -q '^put: big/later$' "$work/out" || fail "the watcher did not go on"
grep -q '^events of the eight: 0, error events: 0$' "$work/out" || fail "the missed events were delivered or reported"
