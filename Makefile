GOLANGCI_LINT := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
GOVULNCHECK := golang.org/x/vuln/cmd/govulncheck@v1.9.0
SBOM := github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.10.0
FUZZTIME ?= 60s
COUNT ?= 3
FUZZERS := ./routing:FuzzRequestBody ./routing:FuzzPath ./admin:FuzzParameters ./host:FuzzSinceToken ./positions:FuzzToken .:FuzzConfig ./consumers:FuzzInboundEDU ./host:FuzzTransaction ./host:FuzzForVerifying ./wire:FuzzObject
SYNAPSE := e2e/.synapse
# Whether the server of make torture and the torture itself have the race detector.
TORTURE_RACE := $(or $(TODEVICE_E2E_RACE),1)
MODULES := e2e/js/node_modules
# Clients that encrypt in Go: without the tag they need libolm.
OLM := goolm

# The tests that hold hosts against every promise of the contract: they wait for minutes.
CONTRACT := ^(TestDendriteKeepsTheContract|TestSmallHostKeepsThePromises|TestEachFaultBreaksItsPromise)$$

# The homeserver that the module is compiled into. Those to test on are all where none is named.
ALL_HOSTS := matrix-org element-hq
HOSTS := $(or $(HOST),$(ALL_HOSTS))
ifeq ($(and $(filter $(ALL_HOSTS),$(HOSTS)),$(if $(HOST),$(filter 1,$(words $(HOST))),1)),)
$(error HOST is "$(HOST)", from the $(origin HOST): it may be matrix-org or element-hq, as in make build HOST=element-hq)
endif
override HOST := $(or $(HOST),matrix-org)
HOSTDIR := $(if $(filter matrix-org,$(HOST)),.,hosts/$(HOST))
export TODEVICE_E2E_HOST := $(HOST)

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this help
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "%-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo 'HOST=matrix-org or HOST=element-hq behind it names the Dendrite. Without it tests run on both, and the rest is for matrix-org.'

.PHONY: build
build: ## Build bin/dendrite-todevice, for element-hq/dendrite with HOST=element-hq
	cd $(HOSTDIR) && go build -trimpath -o $(CURDIR)/bin/dendrite-todevice ./cmd/dendrite-todevice

.PHONY: generate
generate: ## Write the code of further hosts anew
	go generate ./hosts/generate

.PHONY: synapse
synapse: $(SYNAPSE)/requirements.txt ## Install Synapse, with which the end-to-end tests federate

# The copy of the requirements says that all of them are installed.
$(SYNAPSE)/requirements.txt: e2e/synapse/requirements.txt
	python3 -m venv --clear $(SYNAPSE)
	$(SYNAPSE)/bin/pip install --quiet --disable-pip-version-check --only-binary :all: -r $<
	cp $< $@

.PHONY: js
js: $(MODULES)/.package-lock.json ## Install matrix-js-sdk, whose clients the end-to-end tests run

# What npm writes says that all of them are installed. It runs no program that comes with them.
$(MODULES)/.package-lock.json: e2e/js/package.json e2e/js/package-lock.json
	cd e2e/js && npm ci --ignore-scripts --no-audit --no-fund --loglevel error
	touch $@

.PHONY: test
test: synapse js ## Run every test: units, both databases, with and without cgo, end to end, on both hosts or HOST
	./scripts/go-test ./...
	CGO_ENABLED=0 ./scripts/go-test ./storage/...
	$(if $(filter element-hq,$(HOSTS)),cd hosts/element-hq && ../../scripts/go-test ./...)
	$(foreach host,$(HOSTS),cd e2e && TODEVICE_E2E_HOST=$(host) ../scripts/go-test -tags $(OLM) -timeout 40m ./... && cd .. && ):

.PHONY: race
race: ## Run the tests of the module with the race detector, COUNT times (3), but for those of race-hosts
	./scripts/go-test -race -count=$(COUNT) -timeout 30m -skip '$(CONTRACT)' ./...

.PHONY: race-hosts
race-hosts: ## Hold all hosts against the contract with the race detector, and run the second one's other tests with it
	./scripts/go-test -race -timeout 30m -run '$(CONTRACT)' ./hosttest
	$(if $(filter matrix-org,$(HOSTS)),./scripts/go-test -race -timeout 30m -run '$(CONTRACT)' ./host)
	$(if $(filter element-hq,$(HOSTS)),cd hosts/element-hq && ../../scripts/go-test -race -timeout 30m ./...)

.PHONY: e2e
e2e: synapse js ## Run the end-to-end tests alone, against a server with the race detector
	cd e2e && TODEVICE_E2E_RACE=1 ../scripts/go-test -tags $(OLM) -race -timeout 30m ./...

.PHONY: encryption
encryption: synapse js ## Let clients that encrypt talk over kills, stops and absences: alone, federated, with Synapse
	cd e2e && ../scripts/go-test -tags $(OLM) -timeout 20m -run '^TestEncrypted' .

.PHONY: fuzz
fuzz: ## Run each fuzzer for FUZZTIME (60s)
	@for f in $(FUZZERS); do go test -run '^$$' -fuzz "^$${f#*:}\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 50x "$${f%:*}" || exit 1; done

.PHONY: bench
bench: ## Measure this server beside unmodified Dendrite: table, e2e/bench/out with JSON and plots
	cd e2e && go run ./bench $(BENCHFLAGS)

.PHONY: bench-short
bench-short: ## The same in some 5 minutes, with smaller loads and backlogs
	cd e2e && go run ./bench -short $(BENCHFLAGS)

.PHONY: bench-synapse
bench-synapse: synapse ## The same, beside Synapse with PostgreSQL too
	cd e2e && go run ./bench -synapse $(BENCHFLAGS)

.PHONY: bench-storage
bench-storage: ## Measure the writer beside the same rows in the plainest batched SQL, on each database
	go test -run '^$$' -bench Limit -benchtime 10x ./writer

.PHONY: bench-go
bench-go: ## Run the Go benchmarks of the stores, the writer and the trace
	go test -run '^$$' -bench . -benchmem ./storage/... ./writer/... ./trace/...

.PHONY: torture
torture: ## Break everything around the server at random for TODEVICE_TORTURE (30m), as root; TODEVICE_TEST_SEED repeats a run
	cd e2e && TODEVICE_E2E_RACE=$(TORTURE_RACE) TODEVICE_TORTURE=$${TODEVICE_TORTURE:-30m} go test $(if $(filter 1,$(TORTURE_RACE)),-race) -v -count=1 -timeout 24h -run '^TestTorture' .

.PHONY: torture-load
torture-load: ## The same without the race detector, so that 200 requests/s must be accepted in the mean (TODEVICE_TORTURE_RATE)
	TODEVICE_TORTURE_RATE=$${TODEVICE_TORTURE_RATE:-200} $(MAKE) torture TODEVICE_E2E_RACE=0

.PHONY: million
million: ## Take over and give back a million waiting messages, on each database: time and memory
	cd e2e && TODEVICE_E2E_ROWS=1000000 go test -v -count=1 -timeout 60m -run TestMemoryOfMoves .

.PHONY: lint
lint: ## Run go vet and golangci-lint
	go vet ./... && go vet -tags announcements ./cmd/... && go run $(GOLANGCI_LINT) run ./...
	cd hosts/element-hq && go vet ./... && go vet -tags announcements ./cmd/...
	cd e2e && go vet -tags $(OLM) ./... && go run $(GOLANGCI_LINT) run --build-tags $(OLM) --config ../.golangci.yml ./...

.PHONY: vulncheck
vulncheck: ## Look for known faults in what is compiled in; VULNDB names a copy of the database
	GOVULNCHECK=$(GOVULNCHECK) ./scripts/vulncheck

.PHONY: release
release: ## Build the binaries of a release into dist/HOST, or those of TARGETS, with what is in them and checksums
	SBOM=$(SBOM) HOST=$(HOST) ./scripts/release

.PHONY: release-check
release-check: ## Build what is committed twice, in two directories, and compare; COLD=1 with an empty cache the second time
	SBOM=$(SBOM) HOST=$(HOST) ./scripts/release-check
