#!/usr/bin/env bash
# After one flush that failed for want of a file descriptor, RocksDB refuses every write until it is opened again.
#
# Guess: the error ends with its cause. The next flush, at the latest the next but one, works once files can be opened again, and
#   writes work meanwhile, as they go to memory.
# Seen: every put and every flush fails with the text of the first error, seconds after the limit is lifted; reads work. The C
#   API, and with it Rust and Python, has no call that resumes; opening the database again does. So it is with the write-ahead
#   log and without.
# Versions: PyPI rocksdict 0.3.29 (RocksDB 9.8.4; the same was seen of the Rust crate rocksdb 0.25.0 with RocksDB 11.8.1).
# Output seen:
#   with log: flush while no file can be opened: Too many open files
#   with log: put when files can be opened: Too many open files
#   with log: flush when files can be opened: Too many open files
#   with log: get: ok
#   with log: put after the database was opened again: ok
#   (the same lines for "without log")
# Why it hits users: a state machine on RocksDB that treats a failed flush as work to be repeated waits for ever, and its next
#   write fails with an error whose cause is long gone. A burst of connections that takes the last descriptor is enough.
# What kv-server should do: keep descriptors in reserve for the store; make a file in its directory before it asks RocksDB to
#   flush, and try again later if that fails; if RocksDB fails all the same, end with a message that says to start the node again
#   (Generation::flush in kv-state-machine/src/store.rs), since its log has what the store lacks.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() {
  echo "no longer as stated: $*" >&2
  exit 1
}

python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check rocksdict==0.3.29
cat > "$work/flush.py" << 'PYTHON'
import resource
import sys
import tempfile
import time

from rocksdict import Options, Rdict, WriteOptions


def outcome(call):
    try:
        call()
        return "ok"
    except Exception as error:
        return str(error).rpartition(": ")[2]


with tempfile.TemporaryDirectory(dir=sys.argv[1]) as folder:
    for name, disable_wal in (("with log", False), ("without log", True)):
        path = f"{folder}/{name.replace(' ', '-')}"
        database = Rdict(path, Options(raw_mode=True))
        options = WriteOptions()
        options.disable_wal = disable_wal
        database.set_write_options(options)
        database[b"key"] = b"value"
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        flushed = outcome(database.flush)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        print(f"{name}: flush while no file can be opened: {flushed}")
        time.sleep(5)
        print(f"{name}: put when files can be opened: {outcome(lambda: database.put(b'other', b'value'))}")
        print(f"{name}: flush when files can be opened: {outcome(database.flush)}")
        print(f"{name}: get: {outcome(lambda: database[b'key'])}")
        outcome(database.close)
        del database
        database = Rdict(path, Options(raw_mode=True))
        print(f"{name}: put after the database was opened again: {outcome(lambda: database.put(b'other', b'value'))}")
        database.close()
PYTHON
"$work/venv/bin/python" "$work/flush.py" "$work" | tee "$work/output"

for name in "with log" "without log"; do
  cat << EXPECTED
$name: flush while no file can be opened: Too many open files
$name: put when files can be opened: Too many open files
$name: flush when files can be opened: Too many open files
$name: get: ok
$name: put after the database was opened again: ok
EXPECTED
done > "$work/expected"
diff "$work/expected" "$work/output" || fail "the outcomes differ"
