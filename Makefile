# cStor in Go. `make` lists the targets.

# Go keeps its caches below HOME; without one they go below .run, which git ignores.
ifeq ($(strip $(HOME)),)
export HOME := $(CURDIR)/.run/home
endif

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# Where `make up` puts its cluster.
CLUSTER := $(CURDIR)/.run/cluster

# Go knows by itself what is up to date; make only asks it when a source is newer than the program.
sources := $(shell find api cmd demo internal -name '*.go' -not -name '*_test.go' 2>/dev/null) go.mod go.sum
devcluster-sources := $(shell find devcluster -name '*.go' -not -name '*_test.go' 2>/dev/null) $(addprefix devcluster/,go.mod go.sum build.sh)

SEEDS ?= 20000
FIRST ?= 1

##@ Use

.PHONY: help
help: ## List the targets
	@awk 'BEGIN { FS = ":.*## " } /^##@/ { print "\n" substr($$0, 5) } /^[a-z-]+:.*## / { printf "  %-15s %s\n", $$1, $$2 }' Makefile

.PHONY: demo
demo: build ## Move a live volume from node to node, end to end
	@exec bin/demo $(DEMOFLAGS)

.PHONY: up
up: build ## Start a cluster with pools and leave it running
	@exec bin/demo up --dir $(CLUSTER)

.PHONY: down
down: ## Stop the cluster of `make up` and remove it
	@if [ -d $(CLUSTER) ]; then [ -x bin/demo ] || $(MAKE) --no-print-directory build; exec bin/demo down --dir $(CLUSTER); fi

##@ Develop

.PHONY: build
build: bin/cstor bin/demo bin/devcluster ## Build bin/cstor, bin/demo and bin/devcluster

bin/cstor: $(sources)
	nice go build -o $@ ./cmd/cstor
	@touch $@

bin/demo: $(sources)
	nice go build -o $@ ./demo
	@touch $@

bin/devcluster: $(devcluster-sources)
	@[ -e $@ ] || echo "The first build of the Kubernetes control plane takes about ten minutes on two cores; later ones only link."
	devcluster/build.sh $(CURDIR)/$@

.PHONY: test
test: build check test-unit sim test-devcluster test-e2e ## Run all tests: checks, unit, simulation, engine, iSCSI, end to end

.PHONY: check
check: ## Look at the code: gofmt, go vet
	@echo "== gofmt"
	@unformatted=$$(gofmt -l api cmd demo devcluster e2e internal $(wildcard bench sim)); \
		if [ -n "$$unformatted" ]; then echo "gofmt would change:"; echo "$$unformatted"; exit 1; fi
	@echo "== go vet"
	@nice go vet ./...
	@cd devcluster && nice go vet ./...

.PHONY: test-unit
test-unit: ## Run the tests that need no cluster
	@echo "== go test, without the end-to-end tests"
	@nice go test -timeout 30m $(TESTFLAGS) $$(go list ./... | grep -v '/e2e$$')

.PHONY: sim
sim: ## Run SEEDS (20000) lives of a volume in the simulator, from seed FIRST (1) on, on all processors
	@echo "== sim: $(SEEDS) seeds from $(FIRST) on"
	@nice go test ./sim -run TestSeeds -v -count=1 -timeout $$(($(SEEDS) / 5 + 600))s -seeds $(SEEDS) -first $(FIRST) -workers $$(nproc)

.PHONY: test-devcluster
test-devcluster: ## Run the tests of the control plane and the process runtime
	@echo "== go test in devcluster/"
	@cd devcluster && nice go test -timeout 20m $(TESTFLAGS) ./...

.PHONY: test-e2e
test-e2e: build ## Run the walk-through, the kill tests, the disk tests and a little chaos
	@echo "== go test ./e2e"
	@go test -v -count=1 -timeout 45m $(TESTFLAGS) ./e2e

.PHONY: chaos
chaos: build ## Kill, freeze and cut off what serves a volume in use, for CHAOS (10m), while its data moves
	@go test -v -count=1 -timeout 0 $(TESTFLAGS) ./e2e -run TestChaos -chaos $(or $(CHAOS),10m)

.PHONY: bench
bench: build ## Measure, side by side: raw file, network, one and three replicas, rebuild
	@go run ./bench $(BENCHFLAGS)

.PHONY: bench-pool
bench-pool: ## Measure the pool engine beside the raw device and a directory of files
	@go run ./bench/pool $(BENCHFLAGS)

.PHONY: mutants
mutants: ## Break the replication core and the engine on purpose, one rule at a time: the tests have to notice each
	@mutants/run.sh

.PHONY: powercut
powercut: ## Cut the power of every raid type at every operation of the devices, with all that may become of unflushed writes
	@nice go test ./internal/pool -run PowerCut -every -v -count=1 -timeout 12h $(TESTFLAGS)

.PHONY: fuzz
# Without a limit, to shorten one input of a few kilobytes takes a minute, in which nothing else is tried.
fuzz: ## Give every decoder of what is on disk or comes from others arbitrary input, each for FUZZTIME (30s)
	@for package in $$(grep -rl --include='*_test.go' '^func Fuzz' api cmd demo internal $(wildcard bench sim) | xargs -n1 dirname | sort -u | sed 's,^,./,'); do \
		for fuzzer in $$(go test -list '^Fuzz' $$package | grep '^Fuzz' || true); do \
			echo "== $$package $$fuzzer"; \
			GOMEMLIMIT=4GiB nice go test $$package -run '^$$' -fuzz "^$$fuzzer\$$" -fuzztime $(or $(FUZZTIME),30s) -fuzzminimizetime 1s; \
		done; \
	done

.PHONY: generate
generate: ## Generate the CRDs and deep copies from the types of api/
	go generate ./api

.PHONY: deps
deps: ## Install the Debian packages that the iSCSI tests use as clients
	@missing=; for program in iscsi-ls qemu-img qemu-io; do command -v $$program >/dev/null || missing=1; done; \
	[ -n "$$missing" ] || exit 0; \
	packages="libiscsi-bin qemu-utils qemu-block-extra"; \
	if [ "$$(id -u)" = 0 ]; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $$packages; \
	else \
		echo "The iSCSI tests use real clients and skip those that are missing. To have them: sudo apt-get install $$packages"; \
	fi

.PHONY: clean
clean: down ## Remove everything that was built
	@if [ -d .run ]; then chmod -R u+w .run; fi
	rm -rf bin .run
