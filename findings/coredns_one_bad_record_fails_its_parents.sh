#!/usr/bin/env bash
# One value that is no record makes CoreDNS answer SERVFAIL for every name above it in etcd, good records included.
#
# Guess: a value that is not valid JSON is skipped, and the good records beside it are answered.
# Seen: a query for the parent name, and for each name above up to the zone, is SERVFAIL as long as the value is there; only
#   names that do not have it below themselves are answered. A port in quotes ("80") does the same.
# Versions: CoreDNS 1.15.0 (plugin etcd, from the Go module proxy), etcd 3.7.3 and etcdctl 3.7.3.
# Output seen:
#   before: web.example. NOERROR 10.0.0.1 10.0.0.2
#   before: example. NOERROR 10.0.0.1 10.0.0.2 10.0.0.3
#   after /skydns/example/web/x3 = 10.0.0.9: web.example. SERVFAIL
#   after /skydns/example/web/x3 = 10.0.0.9: example. SERVFAIL
#   after /skydns/example/web/x3 = 10.0.0.9: x1.web.example. NOERROR 10.0.0.1
# Why it hits users: the prefix is shared by all who register services. One deployment that writes an address without JSON,
#   or a lock or marker key below /skydns, takes the names of all others down.
# What kv-server should do: it cannot know what values mean. docs/etcd-clients.md says to grant each registrar a role on its
#   own name only (/skydns/example/web/), so that a bad value cannot be put beside the records of others.
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

mkdir "$work/dns"
cd "$work/dns"
printf 'module dns\n\ngo 1.26\n' > go.mod
cat > main.go <<'EOF'
// Asks CoreDNS with the plugin etcd, started in this process, for the A records of names.
package main

import (
	"fmt"
	"os"
	"sort"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/etcd"
	"github.com/miekg/dns"
)

func main() {
	endpoint, port, prefix := os.Args[1], os.Args[2], os.Args[3]
	caddy.Quiet, dnsserver.Quiet = true, true
	corefile := "example.:" + port + " {\n bind 127.0.0.1\n etcd example {\n endpoint " + endpoint + "\n }\n}\n"
	instance, err := caddy.Start(caddy.CaddyfileInput{
		Contents: []byte(corefile), ServerTypeName: "dns", Filepath: "Corefile",
	})
	if err != nil {
		panic(err)
	}
	for _, name := range os.Args[4:] {
		query := new(dns.Msg).SetQuestion(name, dns.TypeA)
		response, err := dns.Exchange(query, "127.0.0.1:"+port)
		if err != nil {
			panic(err)
		}
		addresses := []string{}
		for _, record := range response.Answer {
			addresses = append(addresses, " "+record.(*dns.A).A.String())
		}
		sort.Strings(addresses)
		line := prefix + ": " + name + " " + dns.RcodeToString[response.Rcode]
		for _, address := range addresses {
			line += address
		}
		fmt.Println(line)
	}
	instance.Stop()
}
EOF
go get github.com/coredns/coredns@v1.15.0 > "$work/go.log" 2>&1 && go mod tidy >> "$work/go.log" 2>&1 \
  && go build -o ask . >> "$work/go.log" 2>&1 || { cat "$work/go.log" >&2; exit 2; }
ask() { ./ask "http://127.0.0.1:$port" "$(free_port)" "$@"; }

ctl put /skydns/example/web/x1 '{"host":"10.0.0.1"}' > /dev/null
ctl put /skydns/example/web/x2 '{"host":"10.0.0.2"}' > /dev/null
ctl put /skydns/example/mail '{"host":"10.0.0.3"}' > /dev/null
ask before web.example. example. | tee "$work/before"
ctl put /skydns/example/web/x3 '10.0.0.9' > /dev/null
ask 'after /skydns/example/web/x3 = 10.0.0.9' web.example. example. x1.web.example. | tee "$work/after"

grep -q ': web.example. NOERROR 10.0.0.1 10.0.0.2$' "$work/before" || fail "the good records were not answered"
grep -q ': web.example. SERVFAIL$' "$work/after" || fail "the parent name is answered beside a bad record"
grep -q ': example. SERVFAIL$' "$work/after" || fail "the zone is answered beside a bad record"
grep -q ': x1.web.example. NOERROR 10.0.0.1$' "$work/after" || fail "a name without the bad record below it is not answered"
