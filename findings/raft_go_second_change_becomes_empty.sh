#!/usr/bin/env bash
# etcd's raft library accepts a second membership change, returns no error, and commits an empty entry in its place.
#
# Guess: ProposeConfChange returns ErrProposalDropped while an earlier change is not applied yet.
# Seen: it returns nil. The entry that is committed is an EntryNormal without data; the second node never becomes a member,
#   and nothing tells the caller.
# Versions: go.etcd.io/raft/v3 3.7.0 (Go module proxy).
# Output seen:
#   add learner 2: error <nil>
#   add learner 3: error <nil>
#   committed: EntryConfChange, 4 bytes
#   committed: EntryNormal, 0 bytes
#   configuration: voters=(1) learners=(2)
# Why it hits users: automation that adds two nodes in a row waits for the second for ever, or counts an entry that is
#   committed as a change that is done. A caller must compare the committed entry with what it proposed.
# What kv-server does: its engine answers a change that comes while another is under way with `ChangeError::Busy`, and a
#   change that returns Ok has taken effect.
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
printf 'module second\n\ngo 1.26\n' > go.mod
cat > main.go <<'EOF'
package main

import (
	"fmt"
	"io"
	"log"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func addLearner(id uint64) *raftpb.ConfChange {
	return &raftpb.ConfChange{Type: raftpb.ConfChangeAddLearnerNode.Enum(), NodeId: proto.Uint64(id)}
}

func main() {
	storage := raft.NewMemoryStorage()
	node, err := raft.NewRawNode(&raft.Config{
		ID: 1, ElectionTick: 10, HeartbeatTick: 1, Storage: storage, MaxSizePerMsg: 1 << 20, MaxInflightMsgs: 16,
		Logger: &raft.DefaultLogger{Logger: log.New(io.Discard, "", 0)},
	})
	check(err)
	check(node.Bootstrap([]raft.Peer{{ID: 1}}))

	// Writes and applies what is ready, and prints the committed entries if asked.
	run := func(print bool) {
		for node.HasReady() {
			ready := node.Ready()
			check(storage.Append(ready.Entries))
			for _, entry := range ready.CommittedEntries {
				if print {
					fmt.Printf("committed: %v, %d bytes\n", entry.GetType(), len(entry.GetData()))
				}
				if entry.GetType() == raftpb.EntryConfChange {
					var change raftpb.ConfChange
					check(proto.Unmarshal(entry.GetData(), &change))
					node.ApplyConfChange(&change)
				}
			}
			node.Advance(ready)
		}
	}
	run(false)
	check(node.Campaign())
	run(false)
	fmt.Println("add learner 2: error", node.ProposeConfChange(addLearner(2)))
	fmt.Println("add learner 3: error", node.ProposeConfChange(addLearner(3)))
	run(true)
	fmt.Println("configuration:", node.Status().Config)
}
EOF
{ go get go.etcd.io/raft/v3@v3.7.0 && go mod tidy && go build -o second .; } > "$work/go.log" 2>&1 \
  || { cat "$work/go.log" >&2; exit 2; }
./second | tee "$work/out"

grep -q '^add learner 3: error <nil>$' "$work/out" || fail "the second change is refused"
grep -q '^committed: EntryNormal, 0 bytes$' "$work/out" || fail "no empty entry was committed in its place"
grep -q '^configuration: voters=(1) learners=(2)$' "$work/out" || fail "the configuration is another"
