# Everything a developer or a pipeline calls. Each line says what it runs; `make help` lists them.
SHELL := /bin/bash
.ONESHELL:
SEEDS ?= 2000
# etcd, consul, zookeeper, or patroni: agents that have no store, only the REST API of Patroni
DCS ?= etcd

.PHONY: help setup setup-matrix build demo demo-down test test-matrix sim bench lint fuzz

help:          ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 16

setup:         ## install what the others need (Debian 12, root), and say what
	@command -v cargo >/dev/null || { echo "Rust 1.88 or newer is missing: curl https://sh.rustup.rs -sSf | sh"; exit 1; }
	@tests/setup

setup-matrix: setup
	@tests/setup matrix

build: setup   ## the release binary
	cargo build --release --bins --workspace

demo: build    ## a real cluster, a switchover and a kill, and what the clients saw: make demo DCS=consul
	@target/release/lab demo --dcs $(DCS) --agent target/release/pgsquire

demo-down:     ## end the demo
	@target/release/lab demo-down

test: setup    ## every layer that is needed before a change lands
	@tests/run test

test-matrix: setup-matrix ## the rest: Patroni 3.0.2, PgBouncer 1.24, more seeds, more switchovers
	@tests/run matrix

sim: setup     ## the simulation alone: make sim SEEDS=20000
	SEEDS=$(SEEDS) cargo test --test sim -- --nocapture

bench: build   ## every figure beside its baseline
	@target/release/lab bench --agent target/release/pgsquire || exit
	ulimit -Sn "$$(ulimit -Hn)"
	cargo bench --quiet --bench stores

lint: setup    ## formatting, clippy, dependencies
	@tests/run lint

fuzz: setup    ## the fuzzers, five minutes each
	@tests/run fuzz
