# The front door. Logic lives in crates and in e2e/setup; this only names it.
# Every target does its own set-up first and says what it is doing.

SHELL := /bin/bash
CACHE := $(or $(VEER_CACHE),$(HOME)/.cache/veer)
export VEER_CACHE := $(CACHE)
# Dependencies are compiled once for every checkout of this user.
export CARGO_TARGET_DIR := $(or $(CARGO_TARGET_DIR),$(CACHE)/target)
# Tools that setup installed, where the machine had none. Variables of a command go
# behind it: before it they are those of `source` alone.
ENV   := source $(CACHE)/env
CARGO := $(ENV) && cargo
E2E   := $(CARGO) run --quiet -p

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-down test test-unit test-kernel test-api test-e2e test-faults-short test-kernels demo-emulated test-faults switch-picture test-iptables test-conformance test-conformance-wide test-conformance-matrix test-conformance-switching test-conformance-without-kube-proxy lint bench bench-services bench-monitor image image-arm64 image-next crds clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-36s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install what is missing on this machine (Debian 12, root)
	@e2e/setup/setup

image: setup ## build the two container images into build/images
	@$(ENV) && charts/build-images

image-arm64: setup ## the two images for arm64 (installs Debian's cross compiler; not in CI)
	@$(ENV) && VEER_ARCH=arm64 charts/build-images

image-next: setup ## the same, and an agent whose maps have another layout, for tests
	@$(ENV) && VEER_NEXT_LAYOUT=1 charts/build-images

demo: image ## three real nodes, veer by helm, traffic on all three paths (KEEP=1 leaves it up)
	@$(E2E) veer-e2e-demo -- up $(if $(KEEP),--keep)

demo-down: ## remove every trace of the demo
	@$(E2E) veer-e2e-demo -- down

test: test-unit test-kernel test-api test-e2e test-faults-short ## everything that must hold

test-unit: setup ## what needs no kernel and no cluster
	@$(CARGO) test --workspace --exclude veer-bpf-tests --exclude veer-bpf-programs --exclude veer-e2e-tests --exclude veer-operator
test-kernel: setup ## the BPF programs in the kernel
	@$(CARGO) test -p veer-bpf-tests
test-api: setup ## operator, CRDs and admission against a real API server
	@$(CARGO) test -p veer-operator
test-e2e: image ## the real cluster
	@$(CARGO) test -p veer-e2e-tests --lib --test e2e

test-faults-short: image-next ## some of the faults, under load
	@$(ENV) && VEER_FAULTS=short cargo test -p veer-e2e-tests --test faults

# One after the other: each wants the machine's processors for itself.
test-faults: image-next ## one fault after another under load; the table goes to docs/faults.md
	@$(ENV) && VEER_FAULTS=full VEER_FAULTS_WRITE=1 cargo test -p veer-e2e-tests --test faults
	@$(ENV) && VEER_FAULTS_WRITE=1 VEER_E2E_UNDERLAY=router cargo test -p veer-e2e-tests --test faults -- router

test-kernels: setup ## the BPF programs in Debian's kernels 5.10, 6.1, 6.12 and newest, under qemu
	@$(ENV) && e2e/kernels/run

demo-emulated: image ## the demo on Debian 12's own kernel and cgroup v2 alone, under qemu (ten minutes)
	@$(CARGO) build --quiet -p veer-e2e-demo
	@$(ENV) && e2e/kernels/demo

switch-picture: image ## docs/switch.svg from one change of mode under load
	@$(ENV) && VEER_FAULTS_WRITE=1 cargo test -p veer-e2e-tests --test faults -- one_change_drawn

test-iptables: image ## the services' tests with kube-proxy in iptables mode
	@$(ENV) && VEER_E2E_PROXY=iptables cargo test -p veer-e2e-tests -- services

test-conformance: image ## Kubernetes' own network suite, in both modes
	@$(E2E) veer-e2e-tests --bin veer-conformance

test-conformance-wide: image ## all of it that needs no cloud, second family or policies, on seven nodes in three zones
	@$(E2E) veer-e2e-tests --bin veer-conformance -- --scope wide

test-conformance-matrix: image ## Kubernetes' own network suite on a cluster of each choice of families, in both modes (half an hour)
	@$(E2E) veer-e2e-tests --bin veer-conformance -- --family all

test-conformance-switching: image ## the same on a dual-stack cluster while the mode changes to and fro, once a minute
	@$(E2E) veer-e2e-tests --bin veer-conformance -- --family dual --switching

test-conformance-without-kube-proxy: image ## the same on a dual-stack cluster that never had kube-proxy (services: Full)
	@$(E2E) veer-e2e-tests --bin veer-conformance -- --family dual --proxy-mode none

bench: image ## round trips, streams, ns per packet, memory; as ratios (BEFORE=<git revision>: its programs too)
	@$(E2E) veer-e2e-bench -- $(if $(BEFORE),--before $(BEFORE))

COUNTS ?= 10,1000
bench-services: image ## Services by veer beside kube-proxy's, among others (COUNTS=10,1000)
	@$(E2E) veer-e2e-bench -- --services $(COUNTS)

bench-monitor: image ## what it takes to listen to the programs' decisions
	@$(E2E) veer-e2e-bench -- --monitor

crds: setup ## write crds/manifests and the chart's copy from the types
	@$(CARGO) run --quiet -p veer-crds --bin crdgen

lint: setup ## fmt, clippy for host and BPF, generated files, licences, chart
	@.ci/lint

clean: ## remove what was built (what setup installed stays)
	@rm -rf build target $(CACHE)/target
