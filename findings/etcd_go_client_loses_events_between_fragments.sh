#!/usr/bin/env bash
# Etcd's Go client loses whatever a watch stream delivers between two fragments of one watch.
#
# Guess: fragments are kept for each watch id. Events of another watch that come between two of them reach that watch, and a
#   response that ends another watch changes nothing for the first one.
# Seen: the client joins fragments into one pending response for the whole stream. Events of another watch between two fragments
#   are dropped without an error; the end of another watch drops the fragments that came before it, so that the first watch gets
#   the last part of a revision only, as if it were the whole.
# Versions: go.etcd.io/etcd/client/v3 and api/v3 3.7.3 (Go module proxy), against a server of the Watch service in the script.
# Output seen:
#   nothing: watch of a [a1 a2], watch of b []
#   events of the other watch before: watch of a [a1 a2], watch of b [b1]
#   events of the other watch: watch of a [a1 a2], watch of b []
#   the end of the other watch: watch of a [a2], watch of b []
# Why it hits users: a proxy, or a server of the same API, that multiplexes watches fairly sends other responses between the
#   fragments of a large revision. The API does not forbid it; the client misses changes for ever, and its cache is wrong.
# What kv-server should do: send nothing else on a stream until a revision is complete (kv-server/src/etcd/watch.rs, tested by
#   deletion_of_very_many_keys_comes_whole_or_in_consecutive_fragments).
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() {
  echo "no longer as stated: $*" >&2
  exit 1
}

cd "$work"
printf 'module fragments\n\ngo 1.26\n' > go.mod
cat > main.go << 'EOF'
// A server of etcd's Watch service that sends what its argument says, and etcd's client with two watches on one stream.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
)

type server struct {
	etcdserverpb.UnimplementedWatchServer
	between string
}

func response(watch, revision int64, fragment bool, keys ...string) *etcdserverpb.WatchResponse {
	out := &etcdserverpb.WatchResponse{
		Header: &etcdserverpb.ResponseHeader{Revision: revision}, WatchId: watch, Fragment: fragment,
	}
	for _, key := range keys {
		pair := &mvccpb.KeyValue{Key: []byte(key), ModRevision: revision, CreateRevision: revision, Version: 1}
		out.Events = append(out.Events, &mvccpb.Event{Type: mvccpb.Event_PUT, Kv: pair})
	}
	return out
}

func (s *server) Watch(stream etcdserverpb.Watch_WatchServer) error {
	for id := int64(0); id < 2; id++ {
		if _, err := stream.Recv(); err != nil {
			return err
		}
		created := response(id, 1, false)
		created.Created = true
		if err := stream.Send(created); err != nil {
			return err
		}
	}
	time.Sleep(500 * time.Millisecond)
	sent := []*etcdserverpb.WatchResponse{response(0, 2, true, "a1"), response(0, 2, false, "a2")}
	switch s.between {
	case "events of the other watch":
		sent = []*etcdserverpb.WatchResponse{sent[0], response(1, 3, false, "b1"), sent[1]}
	case "the end of the other watch":
		end := response(1, 3, false)
		end.Canceled, end.CancelReason = true, "permission denied"
		sent = []*etcdserverpb.WatchResponse{sent[0], end, sent[1]}
	case "events of the other watch before":
		sent = append([]*etcdserverpb.WatchResponse{response(1, 3, false, "b1")}, sent...)
	}
	for _, message := range sent {
		if err := stream.Send(message); err != nil {
			return err
		}
	}
	<-stream.Context().Done()
	return nil
}

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	serving := grpc.NewServer()
	etcdserverpb.RegisterWatchServer(serving, &server{between: os.Args[1]})
	go serving.Serve(listener)
	client, err := clientv3.New(clientv3.Config{
		Endpoints: []string{listener.Addr().String()}, Logger: zap.NewNop(), DialTimeout: 5 * time.Second,
	})
	if err != nil {
		panic(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Second)
	defer cancel()
	seen := map[string][]string{"a": {}, "b": {}}
	a := client.Watch(ctx, "a", clientv3.WithPrefix(), clientv3.WithFragment())
	b := client.Watch(ctx, "b", clientv3.WithPrefix(), clientv3.WithFragment())
	timeout := time.After(3 * time.Second)
	for done := false; !done; {
		var name string
		var got clientv3.WatchResponse
		select {
		case got = <-a:
			name = "a"
		case got = <-b:
			name = "b"
		case <-timeout:
			done = true
			continue
		}
		if got.Err() != nil {
			seen[name] = append(seen[name], "error")
			if name == "a" {
				a = nil
			} else {
				b = nil
			}
		}
		for _, event := range got.Events {
			seen[name] = append(seen[name], string(event.Kv.Key))
		}
	}
	fmt.Printf("%s: watch of a %v, watch of b %v\n", os.Args[1], seen["a"], seen["b"])
}
EOF
go get go.etcd.io/etcd/client/v3@v3.7.3 go.etcd.io/etcd/api/v3@v3.7.3 2> go.log || { cat go.log >&2; exit 2; }
go mod tidy 2> go.log || { cat go.log >&2; exit 2; }
go build -o fragments . || exit 2

expect() {
  local seen
  seen=$(./fragments "$1")
  echo "$seen"
  [[ $seen == "$1: watch of a $2, watch of b $3" ]] || fail "$1: $seen"
}
expect "nothing" "[a1 a2]" "[]"
expect "events of the other watch before" "[a1 a2]" "[b1]"
expect "events of the other watch" "[a1 a2]" "[]"
expect "the end of the other watch" "[a2]" "[]"
