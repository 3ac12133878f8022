# Everything sets itself up: a bare Debian with python3, git and make is enough.
# Progress goes to the terminal; what is kept between runs is in .venv (tools) and .testbed (throw-away hosts).
SHELL := /bin/bash -o pipefail
STATE := .testbed
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: help demo test test-full lint bench matrix clean lock docs

help: ## What there is to make
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: ## Boot two throw-away hosts, run site.yml on them, and show a scheduled run
	@demo/run $(STATE)

test: .venv/dev ## Lint, unit tests, and Molecule on real hosts
	@tests/run $(STATE)

test-full: .venv/dev ## The same, with every fault of the fault matrices
	@tests/run $(STATE) --full

lint: .venv/dev ## ansible-lint, yamllint, ruff, mypy, shellcheck
	@tests/lint

bench: ## Measure, as ratios against a peer or a bare command in the same run
	@bench/run $(STATE)

matrix: .venv/dev ## Every fault of the logs, five times, and the same put to other shippers (about an hour)
	@bench/matrix $(STATE)

docs: .venv/dev ## Make the generated pages of docs/ anew
	docs/generate-variables >docs/variables-roles.md
	python -m standpipe.schema --docs >docs/variables-pipelines.md
	python -m standpipe.schema --json-schema >docs/pipelines.schema.json

lock: ## Pin the requirements anew, by hash and without addresses
	@requirements/lock

clean: ## Remove the throw-away hosts, their images and the tools, and nothing else
	@docker/debian-host/clean $(STATE)

.venv/control .venv/dev: .venv/%: requirements/%.txt pyproject.toml
	@requirements/install $*
