"""Results of judging known bugs (`mutants/results.jsonl`), and the page docs/bugs.md that is written from them."""

import fcntl
import hashlib
import json
import os
import re

from mutants_patches import ROOT, crate_folder, order, patches, tracked

RESULTS = ROOT / "mutants/results.jsonl"
PAGE = ROOT / "docs/bugs.md"

# Code on which a result depends; tests of other crates that a header names are added.
JUDGED_CODE = ("consensus-core/", "consensus-engine-raft/", "consensus-testkit/", "consensus-transport-mem/", "Cargo.lock")


def fingerprint(patch, cache={}):
    """Of the patch and of all code on which its result depends."""
    named = tuple(str(crate_folder(layer[1]).relative_to(ROOT)) + "/" for layer in patch.layers if layer[0] == "test")
    if named not in cache:
        hasher = hashlib.sha256()
        for name in sorted(name for name in tracked() if name.startswith(JUDGED_CODE + named) and name.endswith((".rs", ".toml", ".lock"))):
            if (ROOT / name).is_file():
                hasher.update(name.encode() + b"\0" + (ROOT / name).read_bytes())
        cache[named] = hasher.hexdigest()
    diff = re.sub(r"^(index|@@) .*$", "", patch.diff, flags=re.M)
    return hashlib.sha256((cache[named] + diff + str(patch.layers)).encode()).hexdigest()[:16]


def read_results(path=RESULTS):
    lines = path.read_text().splitlines() if path.exists() else []
    return {result["bug"]: result for result in map(json.loads, lines)}


def write_results(results):
    lines = [json.dumps(results[bug], ensure_ascii=False) for bug in sorted(results, key=order)]
    replacement = RESULTS.with_suffix(".new")
    replacement.write_text("\n".join(lines) + "\n")
    replacement.replace(RESULTS)


def add_results(new):
    """Other shards may write at the same time: the folder is the lock."""
    folder = os.open(RESULTS.parent, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    try:
        write_results(read_results() | new)
        PAGE.write_text(page_text())
    finally:
        os.close(folder)


def page_text():
    """docs/bugs.md: what is true of each bug from its header, what found it from the results."""
    known, results = patches(), read_results()
    runs = sorted({result["run"] for result in results.values()})
    marks = {run: f"<sup>{number}</sup>" if len(runs) > 1 else "" for number, run in enumerate(runs, 1)}
    of = {patch.id: results.get(patch.id, {}) for patch in known}
    found = [bug for bug, result in of.items() if result.get("found")]
    simulated = [bug for bug in found if any(hit["by"].startswith("simulation") for hit in of[bug]["found"])]
    lines = [
        "# Known bugs, and what finds each",
        "",
        "<!-- Written by scripts/mutants from the headers of mutants/*.patch and from mutants/results.jsonl: edit those. -->",
        "",
        "Bugs that Raft implementations shipped, or classes of bug that are easy to write. Each is a patch in `mutants`, and the code",
        "itself has none of them. `make mutants` applies one after another to a scratch copy and runs the layers against it: the",
        "*simulation* of whole clusters, the same with operators' *mistakes* as faults, the model checker with the scenario named",
        "(*states*), the simulation of whole engines (*driver*, `consensus-engine-raft/tests/driver_simulation.rs`), single tests",
        "(*test*). Seeds hold for the code of the run: they change",
        "when the simulator or the protocol draws differently. Seconds are wall-clock.",
        "",
        f"**{len(found)} of {len(known)} are found, {len(simulated)} of them by simulation.** Runs, with the time limit of the simulation for each bug:",
        "",
        *[f"* {marks[run]}{' ' * bool(marks[run])}{run}: {sum(result['run'] == run for result in results.values())} bugs" for run in runs],
        "",
        "| | what the code does | breaks | seen in | found by |",
        "|---|---|---|---|---|",
    ]
    for patch in known:
        result = of[patch.id]
        by = "; ".join(as_code(hit["by"]) for hit in result.get("found", []))
        by = (by or ("**nothing**" if result else "not judged yet")) + (f" {marks[result['run']]}" if result and marks[result["run"]] else "")
        cells = [f"[{patch.id}](../mutants/{patch.path.name})", patch.field("Title"), patch.field("Breaks"), patch.field("Shipped-by"), by]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    lines += ["", "## Notes", ""]
    lines += [f"* **{patch.id}**: {patch.field('Note')}" for patch in known if patch.field("Note")]
    lines += [
        "* **D7**, blocks reordered before a sync that keep a node from starting (etcd#6378): there is no patch, as a batch is one record",
        "  of RocksDB's log under one checksum. `consensus-storage-rocksdb/tests/crash_images.rs` opens what a crash leaves, torn writes",
        "  included.",
        "",
    ]
    return "\n".join(lines)


def as_code(by):
    return re.sub(r"^test: (\S+)$", r"test: `\1`", by)
