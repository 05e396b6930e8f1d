#!/usr/bin/env bash
# WatchTree of kvtools/etcdv3 (Traefik's client) sends the whole tree once, and from then on only what changed.
#
# Guess: the channel gives the current list at once, and the full list again after each change; a deletion is a key that is
#   missing in the next list; List("foo") gives what is below foo/.
# Seen: after the first list each message holds the changed pair alone. A deleted key comes as a pair with an empty value,
#   just as a key that was set to the empty string. List("foo") also gives the keys below foobar/.
# Versions: github.com/kvtools/etcdv3 1.0.3 with github.com/kvtools/valkeyrie 1.0.0, etcd 3.7.3.
# Output seen:
#   list of foo: foo/a=1 foobar/x=2
#   tree: foo/a=1
#   tree: foo/b=4 (after a put of foo/b; foo/a is still there)
#   tree: foo/b= (after the deletion of foo/b)
# Why it hits users: code that replaces its table with each message forgets all services but the last one that changed, and
#   keeps deleted ones with an empty address. It works in tests with one key.
# What kv-server should do: docs/etcd-clients.md says to take a message of WatchTree only as a sign to call List again, with
#   a trailing slash.
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

mkdir "$work/tree"
cd "$work/tree"
printf 'module tree\n\ngo 1.26\n' > go.mod
cat > main.go <<'EOF'
package main

import (
	"context"
	"fmt"
	"os"
	"sort"
	"strings"
	"time"

	"github.com/kvtools/etcdv3"
	"github.com/kvtools/valkeyrie/store"
)

func show(pairs []*store.KVPair) string {
	texts := []string{}
	for _, pair := range pairs {
		texts = append(texts, pair.Key+"="+string(pair.Value))
	}
	sort.Strings(texts)
	return strings.Join(texts, " ")
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func main() {
	ctx := context.Background()
	kv, err := etcdv3.New(ctx, []string{os.Args[1]}, &etcdv3.Config{ConnectionTimeout: 5 * time.Second})
	check(err)
	check(kv.Put(ctx, "foo/a", []byte("1"), nil))
	check(kv.Put(ctx, "foobar/x", []byte("2"), nil))
	pairs, err := kv.List(ctx, "foo", nil)
	check(err)
	fmt.Println("list of foo:", show(pairs))

	tree, err := kv.WatchTree(ctx, "foo/", nil)
	check(err)
	next := func() string {
		select {
		case pairs := <-tree:
			return show(pairs)
		case <-time.After(5 * time.Second):
			return "nothing"
		}
	}
	fmt.Println("tree:", next())
	time.Sleep(time.Second)
	check(kv.Put(ctx, "foo/b", []byte("4"), nil))
	fmt.Println("tree:", next(), "(after a put of foo/b; foo/a is still there)")
	check(kv.Delete(ctx, "foo/b"))
	fmt.Println("tree:", next(), "(after the deletion of foo/b)")
}
EOF
{ go get github.com/kvtools/etcdv3@v1.0.3 github.com/kvtools/valkeyrie@v1.0.0 && go mod tidy && go build -o tree .; } \
  > "$work/go.log" 2>&1 || { cat "$work/go.log" >&2; exit 2; }
./tree "127.0.0.1:$port" | tee "$work/out"

grep -q '^list of foo: foo/a=1 foobar/x=2$' "$work/out" || fail "List does not give the keys of foobar/"
grep -q '^tree: foo/a=1$' "$work/out" || fail "the first message is not the whole tree"
grep -q '^tree: foo/b=4 (after a put' "$work/out" || fail "a change does not come alone"
grep -q '^tree: foo/b= (after the deletion' "$work/out" || fail "a deletion does not come as a pair with an empty value"
