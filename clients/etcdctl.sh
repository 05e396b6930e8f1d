#!/usr/bin/env bash
# Runs the commands of the etcdctl given as $1 against the server at localhost:2379. Prints "ok NAME" or "not ok NAME" for each.
set -u
ctl=$1
case $("$ctl" version) in *3.4.*) export ETCDCTL_API=3 ;; esac
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# case NAME COMMAND...: the command succeeds.
case_() {
  local name=$1
  shift
  if timeout 30 "$@" >"$work/out" 2>&1; then echo "ok $name"; else echo "not ok $name"; sed 's/^/# /' "$work/out" | tail -5; fi
}
# shows NAME PATTERN COMMAND...: its output has the extended regular expression.
shows() {
  local name=$1 pattern=$2
  shift 2
  timeout 30 "$@" >"$work/out" 2>"$work/err"
  if grep -Eqz -- "$pattern" "$work/out"; then echo "ok $name"; else echo "not ok $name"; cat "$work/out" "$work/err" | sed 's/^/# /' | tail -5; fi
}
# silent NAME COMMAND...: it succeeds without output.
silent() {
  local name=$1
  shift
  if timeout 30 "$@" >"$work/out" 2>"$work/err" && [[ ! -s $work/out ]]; then echo "ok $name"; else echo "not ok $name"; fi
}
# fails NAME PATTERN COMMAND...: it fails, and its output has the regular expression.
fails() {
  local name=$1 pattern=$2
  shift 2
  if timeout 30 "$@" >"$work/out" 2>&1 || ! grep -Eq -- "$pattern" "$work/out"; then
    echo "not ok $name"; sed 's/^/# /' "$work/out" | tail -5
  else echo "ok $name"; fi
}
txn() { printf "$1" >"$work/txn"; echo "$ctl txn <$work/txn"; }
in_background() { timeout 20 "$@" >"$work/background" 2>&1 & background=$!; sleep 1; }

case_ version "$ctl" version
shows put "OK" "$ctl" put a 1
shows put-prev-kv "OK.a.1" "$ctl" put a 2 --prev-kv
shows get "a.2" "$ctl" get a
shows get-value-only "^2.$" "$ctl" get a --print-value-only
shows get-json '"kvs":\[\{"key":"YQ=="' "$ctl" get a -w json
shows get-fields '"Value" : "2"' "$ctl" get a -w fields
shows get-rev "a.1" "$ctl" get a --rev 2
case_ put-b "$ctl" put b 3
shows get-prefix-sorted "b.3.a.2" "$ctl" get "" --prefix --sort-by KEY --order DESCEND
shows get-keys-only "^a..b..$" "$ctl" get "" --from-key --keys-only
shows get-count '"Count" : 2' "$ctl" get "" --prefix --count-only -w fields
shows get-limit "^a.2.$" "$ctl" get a z --limit 1
shows get-serializable "a.2" "$ctl" get a --consistency s
fails put-empty-key "key is not provided" "$ctl" put "" x
fails put-unknown-lease "requested lease not found" "$ctl" put x y --lease 1234
fails get-future "required revision is a future revision" "$ctl" get a --rev 100000
shows put-ignore-value "OK" "$ctl" put a --ignore-value
shows del-prev-kv "1.b.3" "$ctl" del b --prev-kv
shows del-range "^0" "$ctl" del m n
shows txn-then "SUCCESS..OK" sh -c "$(txn 'ver("a") > "0"\n\nput c 4\n\n\n')"
shows txn-else "FAILURE..c.4" sh -c "$(txn 'val("a") = "7"\n\n\nget c\n\n')"
in_background "$ctl" watch w --prefix
"$ctl" put wa 5 >/dev/null; "$ctl" del wa >/dev/null; sleep 1; kill $background; wait $background 2>/dev/null
shows watch "PUT.wa.5.DELETE.wa" cat "$work/background"
in_background "$ctl" watch wr --rev 1
sleep 1; kill $background; wait $background 2>/dev/null
in_background "$ctl" watch e -- sh -c 'echo "saw $ETCD_WATCH_KEY $ETCD_WATCH_EVENT_TYPE"'
"$ctl" put e 1 >/dev/null; sleep 2; kill $background; wait $background 2>/dev/null
shows watch-exec 'saw .*e.*PUT' cat "$work/background"
shows watch-interactive "PUT.i.1" sh -c '(echo watch i; sleep 3) | timeout 6 '"$ctl"' watch -i & sleep 1; '"$ctl"' put i 1 >/dev/null; wait'
"$ctl" lease grant 100 >"$work/lease"; lease=$(awk '{print $2}' "$work/lease")
shows lease-grant "granted with TTL\(100s\)" cat "$work/lease"
shows put-lease "OK" "$ctl" put l 1 --lease "$lease"
shows lease-timetolive "granted with TTL\(100s\), remaining\((100|9[0-9])s\), attached keys\(\[l\]\)" "$ctl" lease timetolive "$lease" --keys
shows lease-list "$lease" "$ctl" lease list
shows lease-keep-alive-once "keepalived with TTL\(100\)" "$ctl" lease keep-alive "$lease" --once
shows lease-revoke "revoked" "$ctl" lease revoke "$lease"
shows lease-timetolive-of-none "already expired" "$ctl" lease timetolive "$lease"
shows lock-command "^locked" "$ctl" lock name -- echo locked
in_background "$ctl" lock name
shows lock-held "name/" "$ctl" get name --prefix
kill -INT $background; wait $background 2>/dev/null
silent lock-released "$ctl" get name --prefix
in_background "$ctl" elect chair me
shows elect-listen "me" timeout 3 "$ctl" elect -l chair
kill -INT $background; wait $background 2>/dev/null
silent elect-resigned "$ctl" get chair --prefix
shows compaction "compacted revision 3" "$ctl" compaction 3
fails get-compacted "required revision has been compacted" "$ctl" get a --rev 2
shows compaction-physical "compacted revision 4" "$ctl" compaction 4 --physical
shows member-list "started.*http" "$ctl" member list
shows member-list-table "PEER ADDRS" "$ctl" member list -w table
fails member-remove-unknown "[Mm]ember not found" "$ctl" member remove 1234
shows endpoint-health "is healthy" sh -c "$ctl endpoint health 2>&1"
shows endpoint-health-cluster "is healthy" sh -c "$ctl endpoint health --cluster 2>&1"
shows endpoint-status "127.0.0.1:2379, [0-9a-f]+, 3\." "$ctl" endpoint status
shows endpoint-status-json '"dbSize"' "$ctl" endpoint status -w json
shows endpoint-status-table "IS LEADER" "$ctl" endpoint status -w table
shows endpoint-hashkv "127.0.0.1:2379, [0-9]+" "$ctl" endpoint hashkv
case_ alarm-list "$ctl" alarm list
case_ alarm-disarm "$ctl" alarm disarm
shows defrag "Finished defragmenting" "$ctl" defrag
shows snapshot-save "Snapshot saved|saved" "$ctl" snapshot save "$work/snapshot.db"
shows check-datascale "PASS|Approximate" "$ctl" check datascale --load s
case_ auth-status sh -c "$ctl auth status || $ctl auth enable --help"
case_ completion sh -c "$ctl completion bash || $ctl help"
case_ user-list "$ctl" user list
case_ role-list "$ctl" role list
