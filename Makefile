# The two commands of the README, and what developers run. All need root and Debian 12 (or alike).

SHELL := /bin/bash
# Outside the clone, so that a fresh clone on a kept machine builds in seconds.
export CARGO_TARGET_DIR ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/muster-target
STATIC := -- -C target-feature=+crt-static

.PHONY: demo demo-down test lint bench bench-discovery bench-engine bench-gateway bench-hub bench-overlay setup

# The story on four real machines; leaves the cluster running.
demo: setup
	@echo '== building (on a fresh machine this takes minutes) =='
	cargo build --release --package muster --package story --package gateway-bench
	cargo rustc --release --package someapp $(STATIC)
	$(CARGO_TARGET_DIR)/release/demo

# Removes everything that `make demo` left running.
demo-down:
	bin/lab down

# Everything that is checked, on real systemd, Docker, etcd and nginx.
test: setup
	cargo xtask tidy
	cargo build --package muster --package gateway-bench
	cargo rustc --package someapp $(STATIC)
	cargo test --workspace

lint: setup
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- --deny warnings
	cargo xtask tidy

# Figures beside the older systems'; rewrites bench/results.md and the README's table.
bench: setup
	cargo build --release --package muster --package story --package gateway-bench
	cargo rustc --release --package someapp $(STATIC)
	$(CARGO_TARGET_DIR)/release/bench

# The promises of registration and balancing, on four machines under load; rewrites bench/discovery.md. Takes some
# fifteen minutes, and a quiet machine.
bench-discovery: setup
	cargo build --release --package muster --package story --package gateway-bench
	cargo build --release --package dns --example dns_load
	cargo rustc --release --package someapp $(STATIC)
	$(CARGO_TARGET_DIR)/release/discovery

# The engine alone, without a hub; rewrites bench/engine.md.
bench-engine: setup
	cargo build --release --package engine-bench
	$(CARGO_TARGET_DIR)/release/engine-bench

# The gateway beside Debian's nginx, haproxy and caddy; rewrites bench/gateway.md. Takes some four minutes, and a quiet
# machine.
bench-gateway: setup
	cargo build --release --package gateway-bench
	$(CARGO_TARGET_DIR)/release/gateway-bench

# The embedded hub beside Debian's etcd; rewrites bench/hub.md. Takes some five minutes, and a quiet machine.
bench-hub: setup
	cargo build --release --package hub-bench
	$(CARGO_TARGET_DIR)/release/hub-bench

# The cluster network beside one made by hand; rewrites bench/overlay.md. Takes some five minutes, root and a quiet
# machine; installs Debian's ethtool and wireguard-go.
bench-overlay: setup
	cargo build --release --package muster --package overlay-bench
	$(CARGO_TARGET_DIR)/release/overlay-bench

# Debian's packages.
setup:
	@bin/setup
