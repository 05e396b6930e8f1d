"""The patches of known bugs (`mutants/ID.patch`) and their headers; scripts/mutants says what a header holds."""

import functools
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Code that the simulation and the model checker run.
SIMULATED = ("consensus-core/", "consensus-engine-raft/protocol/", "consensus-engine-raft/simulator/")
# Crates that build RocksDB: minutes of C++ for one patch. No patch needs them; one that does is refused.
BUILDS_ROCKSDB = ("consensus-storage-rocksdb", "kv-state-machine", "kv-server", "fuzz")


def git(*words, check=True, **options):
    return subprocess.run(["git", *words], check=check, text=True, capture_output=True, **options)


@functools.cache
def tracked():
    """Files of the working tree that are or may be committed."""
    return git("ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT).stdout.split("\0")[:-1]


class Patch:
    def __init__(self, path):
        self.path, self.id = path, path.stem
        self.text = path.read_text()
        header, mark, self.diff = self.text.partition("\ndiff --git ")
        self.diff = mark.lstrip("\n") + self.diff
        self.header = header.rstrip("\n") + "\n"
        self.fields = {}
        for line in self.header.replace("\n  ", " ").splitlines():
            key, _, value = line.partition(": ")
            if value:
                self.fields.setdefault(key, []).append(value.strip())
        self.files = re.findall(r"^diff --git a/(\S+) b/", self.text, re.M)
        self.layers = [layer.split() for layer in self.fields.get("Found-by", [])]

    def field(self, key):
        return self.fields.get(key, [""])[0]

    def is_simulated(self):
        return any(file.startswith(SIMULATED) for file in self.files)

    def crates(self):
        """Folders of the crates that the patch touches."""
        folders = set()
        for file in self.files:
            folder = pathlib.PurePath(file).parent
            while not (ROOT / folder / "Cargo.toml").exists():
                folder = folder.parent
            folders.add(folder)
        return sorted(folders)

    def faults(self):
        """What is wrong with the header."""
        if self.field("Bug") != self.id:
            yield f"the line `Bug:` says {self.field('Bug') or 'nothing'}, the file name {self.id}"
        yield from (f"the header lacks a line `{key}:`" for key in ("Title", "Breaks", "Shipped-by", "Found-by") if not self.field(key))
        if not self.field("Breaks").startswith(("safety", "liveness")):
            yield "the line `Breaks:` says neither safety nor liveness"
        for layer in self.layers:
            shape = {"simulation": 1, "mistakes": 1, "states": 2, "driver": 1, "test": 4}.get(layer[0])
            if len(layer) != shape:
                yield f"`Found-by: {' '.join(layer)}` is not a layer (scripts/mutants says which there are)"
            elif layer[0] == "test" and not is_test_there(layer[1], layer[2], layer[3]):
                yield f"`Found-by: {' '.join(layer)}`: there is no such test"
            elif layer[0] == "states" and f'"{layer[1]}"' not in scenarios_text():
                yield f"`Found-by: {' '.join(layer)}`: there is no such scenario"
        if any(str(crate) in BUILDS_ROCKSDB for crate in self.crates()):
            yield "it changes a crate that builds RocksDB, which takes too long here"


def order(bug):
    """E1, E2, E10, then P1: by letter in the order of the page, then by number."""
    letters = "EPCRMSDWTK"
    return (letters.find(bug[0]) % 26, bug[0], int(re.sub(r"\D", "", bug) or 0))


def patches(ids=()):
    found = [Patch(path) for path in ROOT.glob("mutants/*.patch")]
    unknown = set(ids) - {patch.id for patch in found}
    if unknown:
        sys.exit(f"mutants: there is no mutants/{sorted(unknown)[0]}.patch")
    return sorted((patch for patch in found if not ids or patch.id in ids), key=lambda patch: order(patch.id))


def crate_folder(crate):
    for manifest in (ROOT / name for name in tracked() if name.endswith("Cargo.toml")):
        if f'\nname = "{crate}"\n' in manifest.read_text():
            return manifest.parent
    return ROOT / crate


def is_test_there(crate, target, name):
    folder, function = crate_folder(crate), f"fn {name.split('::')[-1]}("
    files = (folder / "src").rglob("*.rs") if target == "lib" else [folder / f"tests/{target}.rs"]
    return any(file.exists() and function in file.read_text() for file in files)


@functools.cache
def scenarios_text():
    return (ROOT / "consensus-engine-raft/simulator/src/model/scenario.rs").read_text()


def stale_text(patch, why):
    return f"mutants/{patch.path.name} does not apply to the code any more:\n{why}  renew it: scripts/mutants --refresh {patch.id}"
