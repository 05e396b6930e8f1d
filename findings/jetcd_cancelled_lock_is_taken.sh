#!/usr/bin/env bash
# A lock request that a Java program cancelled in jetcd stays in etcd's queue, and takes the lock that nobody then frees.
#
# Guess: cancelling the future of a waiting lock() withdraws the request; it does not get the lock later.
# Seen: cancel(true) returns true, but the waiting key stays. When the holder unlocks, the cancelled request is next and
#   owns the lock for as long as its lease lives; a third client waits in vain.
# Versions: jetcd-core 0.8.6 (Maven Central), etcd 3.7.3.
# Output seen:
#   cancelled: true
#   keys of the lock: 2
#   holder unlocked, keys of the lock: 1, owner is the cancelled request: true
#   third client: no lock within 4 s
#   third client after the lease of the cancelled one was revoked: lock taken
# Why it hits users: a lock with a time-out is written as lock(...).get(1, SECONDS) and cancel in the catch. With a lease
#   that is kept alive for the life of the program, each time-out leaves a request that blocks everybody until the program
#   ends.
# What kv-server should do: it cannot do better than etcd, since the client keeps the call open and says nothing.
#   docs/etcd-clients.md says to take a lease of its own for each lock attempt in jetcd, and to revoke it when giving up.
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

mkdir "$work/java"
cd "$work/java"
cat > pom.xml <<'EOF'
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>finding</groupId>
  <artifactId>finding</artifactId>
  <version>1</version>
  <dependencies>
    <dependency><groupId>io.etcd</groupId><artifactId>jetcd-core</artifactId><version>0.8.6</version></dependency>
    <dependency><groupId>org.slf4j</groupId><artifactId>slf4j-nop</artifactId><version>2.0.17</version></dependency>
  </dependencies>
</project>
EOF
mvn --quiet --batch-mode org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies \
  -DoutputDirectory=lib > "$work/mvn.log" 2>&1 || { cat "$work/mvn.log" >&2; exit 2; }

cat > CancelledLock.java <<'EOF'
import io.etcd.jetcd.ByteSequence;
import io.etcd.jetcd.Client;
import io.etcd.jetcd.kv.GetResponse;
import io.etcd.jetcd.lock.LockResponse;
import io.etcd.jetcd.options.GetOption;
import java.nio.charset.StandardCharsets;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;

public class CancelledLock {
    static ByteSequence bytes(String text) {
        return ByteSequence.from(text, StandardCharsets.UTF_8);
    }

    static GetResponse keys(Client client) throws Exception {
        return client.getKVClient().get(bytes("job/"), GetOption.builder().isPrefix(true).build()).get();
    }

    public static void main(String[] args) throws Exception {
        Client client = Client.builder().endpoints(args[0]).build();
        ByteSequence name = bytes("job");
        long[] lease = new long[3];
        for (int i = 0; i < 3; i++) {
            lease[i] = client.getLeaseClient().grant(120).get().getID();
        }
        LockResponse held = client.getLockClient().lock(name, lease[0]).get();
        CompletableFuture<LockResponse> waiting = client.getLockClient().lock(name, lease[1]);
        Thread.sleep(1000);
        System.out.println("cancelled: " + waiting.cancel(true));
        Thread.sleep(1000);
        System.out.println("keys of the lock: " + keys(client).getCount());

        client.getLockClient().unlock(held.getKey()).get();
        Thread.sleep(500);
        GetResponse left = keys(client);
        System.out.println("holder unlocked, keys of the lock: " + left.getCount() + ", owner is the cancelled request: "
            + (left.getCount() > 0 && left.getKvs().get(0).getLease() == lease[1]));
        CompletableFuture<LockResponse> third = client.getLockClient().lock(name, lease[2]);
        try {
            third.get(4, TimeUnit.SECONDS);
            System.out.println("third client: lock taken");
        } catch (TimeoutException e) {
            System.out.println("third client: no lock within 4 s");
        }
        client.getLeaseClient().revoke(lease[1]).get();
        third.get(10, TimeUnit.SECONDS);
        System.out.println("third client after the lease of the cancelled one was revoked: lock taken");
        System.exit(0);
    }
}
EOF
timeout 120 java -cp 'lib/*' CancelledLock.java "http://127.0.0.1:$port" | tee "$work/out"

grep -q '^cancelled: true$' "$work/out" || fail "the future could not be cancelled"
grep -q '^keys of the lock: 2$' "$work/out" || fail "the cancelled request was withdrawn"
grep -q 'owner is the cancelled request: true' "$work/out" || fail "the cancelled request did not get the lock"
grep -q '^third client: no lock within 4 s$' "$work/out" || fail "a third client got the lock"
