# Everything this project can be asked to do. `make help` is made from the comments after `##`.
# Each target is a script that can also be run alone; options go through the environment.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help build check format test sim fuzz crash guest bench demo clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## Build cairnd and cairn (release) into target/release
	scripts/packages.sh build
	cargo build --release -p service-daemon -p service-cli

check: ## Formatting and lints, the quick checks before a commit
	scripts/stages/format.sh
	scripts/stages/clippy.sh
	cargo test -p tidy

format: ## Format all Rust code
	cargo fmt --all

test: ## Every test there is, as CI runs it (STAGES="unit sim" runs only those)
	scripts/test.sh $(STAGES)

sim: ## The simulator on fixed seeds (SEEDS=1..300 OPS=2000, or SEED=7 to replay one)
	scripts/stages/sim.sh

fuzz: ## Each fuzz target for a while (SECONDS_EACH=60)
	scripts/stages/fuzz.sh

crash: ## Kill the daemon under load, again and again (KILLS=100 SEED=1)
	scripts/stages/crash.sh

guest: ## Linux guests as initiators (TEST=name for one, LIST=1 for their names)
	guest/run.sh $(if $(LIST),--list) $(TEST)

bench: ## Engine against fio on the raw file, target against SPDK (see docs/benchmarks.md)
	benches/run.sh

demo: ## A pool, a volume and a file tree on this machine (DEMO=once ends by itself)
	demo/run.sh

clean: ## Remove what was built and cached
	cargo clean
	rm -rf .cache demo-pool
