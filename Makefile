# `make demo` and `make test` are the two commands of the README; both set up what they need.

# ccache keeps the compiled C++ of RocksDB between builds. `make setup` may only be about to install it, so the directory is
# named whether or not it exists; cargo's fingerprints do not depend on PATH.
export PATH := /usr/lib/ccache:$(PATH)
export CARGO_TARGET_DIR ?= $(CURDIR)/target
VENV := $(CARGO_TARGET_DIR)/python
export KV_TEST_PYTHON := $(VENV)/bin/python
BIN := $(CARGO_TARGET_DIR)/debug

.PHONY: deb package help demo test setup build format lint unit doc examples figures fuzz generate clean

help: ## shows this
	@sed -n 's/^\([a-z]*\):.*## /make \1	/p' Makefile

demo: setup build ## three real servers, a killed leader, equal hashes
	BIN=$(BIN) scripts/demo

test: setup python format lint unit simulate states page doc examples etcd-api etcd-compat-quick mutants-check instructions ## everything that CI checks

setup:
	@scripts/setup

# The selection of packages decides the features of RocksDB's build dependencies, and so whether RocksDB is compiled again:
# every target below builds the default members (see Cargo.toml), never `-p` of something that needs RocksDB.
build:
	@scripts/announce-build
	cargo build --bin kv-server --bin kvctl

format:
	cargo fmt --all --check

lint:
	cargo clippy --all-targets --all-features -- -D warnings
	cargo clippy -p consensus-protocol-benches --all-targets -- -D warnings
	scripts/check-rocksdb-builds
	scripts/plain-words
	@if cargo tree -e normal,build,dev -p consensus-core -p consensus-engine-raft -p consensus-storage-wal -p examples | grep -q rocksdb; then \
	  echo "consensus-core, consensus-engine-raft, consensus-storage-wal and the examples must not build RocksDB"; exit 1; fi

# nextest where it is there: it runs the tests of all crates side by side. Else the tests have its limits all the same.
unit:
	@if cargo nextest --version >/dev/null 2>&1; then cargo nextest run; \
	  else cargo test --no-fail-fast --lib --bins --tests --config "target.'cfg(all())'.runner = '$(CURDIR)/scripts/test-binary'"; fi

SIM := cargo run --quiet -p consensus-raft-simulator --bin raft-sim --

# Whole clusters from seeds, then clusters whose operators make mistakes; fails too if something rare never came about.
simulate:
	$(SIM) sweep --seeds 4000
	$(SIM) sweep --seeds 3000 --mistakes

# Every state of small clusters, some millions; of larger ones the first.
states:
	$(SIM) model-check --states 600000 --seconds 30

# The time-space diagram of a run, in a real browser.
page:
	scripts/check-page

SEED ?= 1
sim: ## one simulated cluster, step by step: SEED=7; ARGS="--all --page run.html --shrink"
	$(SIM) run $(SEED) $(ARGS)

LEASE_SEEDS ?= 1000
leases: ## leases, watches and locks of simulated clusters of the real engine and store: LEASE_SEEDS=1000
	LEASE_SEEDS=$(LEASE_SEEDS) cargo test --test lease_simulation -- --nocapture

mutants: ## known bugs, patched in one after another: what finds each; hours, can be resumed; SHARD=1/4 ARGS="C1 E6"
	scripts/mutants $(ARGS)

# Every patch of a known bug still applies, and one of them in turn compiles.
package: ## the packages of all published crates, as the registry would take them; uploads nothing
	cargo publish --workspace --dry-run --no-verify

# The scripts need `cargo install cargo-deb`.
DEB_PROFILE ?= release
deb: ## a Debian package of kv-server and kvctl, checked; DEB_PROFILE=dev: of what `make build` builds
	scripts/deb $(DEB_PROFILE)

mutants-check:
	scripts/mutants --check
	scripts/mutants --compile

SEEDS ?= 200
etcd-compat: ## the same random requests to etcd (ETCD=PATH; else built with Go) and kv-server; SEEDS=1000
	cargo build --bin kv-server --bin kvctl
	cargo build -p kv-etcd-compat
	etcd=$$(scripts/etcd) && $(BIN)/kv-etcd-compat --etcd "$$etcd" --kv-server $(BIN)/kv-server --seeds $(SEEDS) --flags-page docs/etcd-flags.md

SUITES ?=
clients: build ## suites of other people's etcd clients, against etcd and kv-server; SUITES="go jetcd"
	clients/run $(SUITES)

patroni: build ## PostgreSQL's Patroni on three kv-servers: switchover, both leaders killed at once
	clients/patroni

metrics: build ## asks a Prometheus (apt-get install prometheus) what dashboards and alerts ask for, on a cluster under load
	scripts/check-metrics $(BIN)

# In a minute, where there is an etcd or a Go to build one.
etcd-compat-quick: build
	cargo build -p kv-etcd-compat
	@if etcd=$$(scripts/etcd); then $(BIN)/kv-etcd-compat --etcd "$$etcd" --kv-server $(BIN)/kv-server --seeds 20 --flags-page docs/etcd-flags.md; \
	  else echo "not compared with etcd"; fi

# The generated code of etcd's API is current.
etcd-api:
	cargo test -p kv-etcd-api-generator

HOURS ?= 1000
soak: ## so many HOURS of simulated clusters' lives, release build
	cargo run --release --quiet -p consensus-raft-simulator --bin raft-sim -- sweep --seeds 1000000000 --hours $(HOURS) $(ARGS)

STATES ?= 20000000
modelcheck: ## so many STATES of each scenario, release build
	cargo run --release --quiet -p consensus-raft-simulator --bin raft-sim -- model-check --states $(STATES) --seconds 3600 $(ARGS)

.PHONY: clients patroni metrics etcd-compat etcd-compat-quick etcd-api bench instructions page model-check simulate states sim leases mutants mutants-check soak modelcheck fuzz
model-check: modelcheck

doc:
	cargo test --doc
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --quiet

examples:
	cargo build --quiet --examples --features examples/kv
	@for example in counter embedded_kv lock_service config_watcher partition own_transport swap_engine; do \
	  echo "== example $$example"; $(BIN)/examples/$$example || exit 1; done

.PHONY: python
python: $(VENV)/thriftpy2

$(VENV)/thriftpy2:
	python3 -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check thriftpy2==0.7.1
	touch $@

figures: setup ## writes per second and latencies on three nodes, release build
	cargo build --release --bin kv-server --bin kvctl
	BIN=$(CARGO_TARGET_DIR)/release scripts/figures

# What the hot paths take, counted: no tenth more than before.
instructions:
	scripts/instructions

BENCH := $(CARGO_TARGET_DIR)/release/bench --docs docs
bench: ## beside openraft, raft-rs, omnipaxos and etcd 3.7 (built with Go; else the one in PATH); renews the figures of docs/performance.md
	cargo build --release --bin bench --bin kv-server
	cargo build --release -p consensus-protocol-benches
	$(CARGO_TARGET_DIR)/release/bench-protocols --docs docs && $(BENCH) engine && $(BENCH) single && export ETCD=$$(scripts/etcd || echo etcd) && \
	  $(BENCH) server && $(BENCH) grpc && $(BENCH) queue && $(BENCH) failover && $(BENCH) scale && $(BENCH) resources

TARGETS ?= $(basename $(notdir $(wildcard fuzz/fuzz_targets/*.rs)))
SECONDS_EACH ?= 60
fuzz: ## the decoders under libFuzzer: TARGETS="record message" SECONDS_EACH=600; see docs/fuzzing.md
	@for target in $(TARGETS); do echo "== $$target"; fuzz/run $$target $(SECONDS_EACH) || exit 1; done

generate: ## Rust code of the Thrift IDLs
	scripts/generate-thrift

clean: ## removes what was built
	cargo clean
