#!/usr/bin/env bash
# After a membership change hashicorp/raft takes no snapshot until somebody writes again, however long one waits.
#
# Guess: Snapshot() works a moment after the change; an error, if any, goes away by itself.
# Seen: it fails with "cannot take snapshot now, wait until the configuration entry at N has been applied", and goes on
#   failing for as long as no command follows, although the change is long committed. Barrier() or Apply() ends it at once.
# Versions: github.com/hashicorp/raft 1.8.0 (Go module proxy).
# Output seen:
#   before the change: <nil>
#   after the change, 0 s: cannot take snapshot now, wait until the configuration entry at 4 has been applied (have applied 3)
#   after the change, 5 s: cannot take snapshot now, wait until the configuration entry at 4 has been applied (have applied 3)
#   after a barrier: <nil>
# Why it hits users: the backup that a careful operator takes right after replacing a node fails, and with it the script,
#   just on a cluster without load. The text says to wait, and waiting does not help.
# What kv-server does: compacting its engine's log waits for no membership entry; the reasons for which it is refused are
#   those of `SnapshotError`, and an idle cluster is none.
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

mkdir "$work/raft"
cd "$work/raft"
printf 'module idle\n\ngo 1.26\n' > go.mod
cat > main.go <<'EOF'
package main

import (
	"fmt"
	"io"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

type machine struct{}

func (machine) Apply(*raft.Log) interface{}           { return nil }
func (machine) Snapshot() (raft.FSMSnapshot, error)   { return snapshot{}, nil }
func (machine) Restore(io.ReadCloser) error           { return nil }

type snapshot struct{}

func (snapshot) Persist(sink raft.SnapshotSink) error { return sink.Close() }
func (snapshot) Release()                             {}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func main() {
	address, transport := raft.NewInmemTransport("one")
	store := raft.NewInmemStore()
	config := raft.DefaultConfig()
	config.LocalID = "one"
	config.Logger = hclog.NewNullLogger()
	node, err := raft.NewRaft(config, machine{}, store, store, raft.NewInmemSnapshotStore(), transport)
	check(err)
	servers := raft.Configuration{Servers: []raft.Server{{ID: "one", Address: address}}}
	check(node.BootstrapCluster(servers).Error())
	for node.State() != raft.Leader {
		time.Sleep(50 * time.Millisecond)
	}
	check(node.Apply([]byte("x"), time.Second).Error())
	fmt.Println("before the change:", node.Snapshot().Error())

	check(node.AddNonvoter("two", "two", 0, time.Second).Error())
	fmt.Println("after the change, 0 s:", node.Snapshot().Error())
	time.Sleep(5 * time.Second)
	fmt.Println("after the change, 5 s:", node.Snapshot().Error())
	check(node.Barrier(time.Second).Error())
	fmt.Println("after a barrier:", node.Snapshot().Error())
}
EOF
{ go get github.com/hashicorp/raft@v1.8.0 && go mod tidy && go build -o idle .; } > "$work/go.log" 2>&1 \
  || { cat "$work/go.log" >&2; exit 2; }
timeout 60 ./idle | tee "$work/out"

grep -q '^before the change: <nil>$' "$work/out" || fail "no snapshot before the change"
grep -q '^after the change, 5 s: cannot take snapshot now' "$work/out" || fail "a snapshot is taken on an idle cluster"
grep -q '^after a barrier: <nil>$' "$work/out" || fail "no snapshot after a barrier"
