# vifd: `make` alone says what there is to do.

PYTHON ?= python3
PREFIX ?= /opt/vifd
BINDIR ?= /usr/local/bin
LIBDIR ?= /usr/local/lib
DATADIR ?= /usr/local/share
SYSCONFDIR ?= /etc

BIN := .venv/bin
# What needs root asks for it by itself, and leaves no file of root's in somebody's checkout.
ROOT := $(shell test "$$(id -u)" = 0 || echo sudo env PYTHONDONTWRITEBYTECODE=1)
PYTEST := $(BIN)/python -m pytest -p no:cacheprovider
# Several at once, where nothing is shared: the numbers of macvtaps are, by all network namespaces.
AT_ONCE := --numprocesses auto --maxprocesses 4 --dist worksteal
# Root's runs write no bytecode here, and would compile vifd with each of its starts.
COMPILE = @$(BIN)/python -m compileall -q vifd vif client
HEADING = @printf '\n== %s\n'

export PYTHON
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help venv protos guest vm lint test test-unit test-functional test-e2e test-vm demo bench bench-vm install uninstall clean

help: ## Print this
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: .venv/installed ## Make .venv with vifd, vifctl, vif-sanity, grpcurl and the tools of the tests

.venv/installed: pyproject.toml hatch_build.py $(wildcard protos/vif/v1/*.proto)
	tests/setup venv
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

protos: venv ## Generate the Python of protos/ anew (the venv has it generated already)
	$(BIN)/python hatch_build.py

guest: venv ## Build the tiny virtual machine of the tests and the demo
	tests/setup guest
	$(BIN)/python -m tests.guest

vm: venv ## Fetch and build the emulated machine, for what this host's kernel can't show
	tests/setup vm
	$(BIN)/python -m tests.vm --prepare

lint: venv ## Check style, types, the direction of imports, and the API's form
	$(HEADING) lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --package tests.guest --package tests.e2e --package tests.vm --package demo
	$(BIN)/mypy client/examples
	$(BIN)/lint-imports
	$(BIN)/buf lint protos

test: ## Install what the tests need, then lint and run every tier of tests
	tests/setup venv test vm
	$(MAKE) --no-print-directory lint test-unit test-functional test-e2e test-vm
	$(HEADING) 'all passed'

test-unit: venv ## Run the tests that need nothing
	$(HEADING) 'unit tests'
	$(PYTEST) $(AT_ONCE) tests/unit

test-functional: venv ## Run the tests with a real daemon and kernel, in network namespaces (root)
	tests/setup test
	$(COMPILE)
	$(HEADING) 'functional tests'
	$(ROOT) $(PYTEST) tests/functional

test-e2e: guest ## Run the tests with real virtual machines (root, QEMU)
	tests/setup test
	$(COMPILE)
	$(HEADING) 'end-to-end tests'
	$(ROOT) $(PYTEST) tests/e2e

test-vm: vm ## Run in an emulated machine the tests that this host's kernel can't show; TESTS='...': these
	$(HEADING) 'tests in the emulated machine'
	$(BIN)/python -m tests.vm $(if $(COVERAGE),--coverage) $(TESTS)

demo: venv ## See it work: an ordinary user gets an endpoint, and a virtual machine talks through it
	tests/setup demo
	$(BIN)/python -m tests.guest
	@$(ROOT) $(BIN)/python -m demo

bench: guest ## Measure vifd beside the bare kernel, ip and CNI (root)
	tests/setup bench
	$(ROOT) $(BIN)/python -m tests.bench

bench-vm: vm ## Measure VFs in the emulated machine: by step, at once, and beside taps; BENCH='...': the bench's arguments
	$(HEADING) 'bench in the emulated machine'
	$(BIN)/python -m tests.vm --bench -- --only vf-steps --only vfs $(BENCH)

install: ## Install on this host: a venv in PREFIX, units, sysusers, tmpfiles, an example configuration (root)
	@test ! -e $(DESTDIR)$(PREFIX) -o -e $(DESTDIR)$(PREFIX)/pyvenv.cfg || \
	    { echo "$(DESTDIR)$(PREFIX) holds other things: PREFIX has to be a directory for vifd alone" >&2; exit 1; }
	test -n "$(DESTDIR)" || tests/setup venv
	$(PYTHON) -m venv $(DESTDIR)$(PREFIX)
	$(DESTDIR)$(PREFIX)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade .
	# below DESTDIR, the programs name their interpreter by the path it will have
	test -z "$(DESTDIR)" || grep -rlIF '#!$(DESTDIR)' $(DESTDIR)$(PREFIX)/bin | xargs sed -i '1s|^#!$(DESTDIR)|#!|'
	install -d $(DESTDIR)$(BINDIR) $(DESTDIR)$(SYSCONFDIR)/vifd
	ln -sfn $(PREFIX)/bin/vifd $(PREFIX)/bin/vifctl $(PREFIX)/bin/vif-sanity $(DESTDIR)$(BINDIR)/
	install -d $(DESTDIR)$(DATADIR)/bash-completion/completions
	$(DESTDIR)$(PREFIX)/bin/python -I $(DESTDIR)$(PREFIX)/bin/vifctl completion bash >$(DESTDIR)$(DATADIR)/bash-completion/completions/vifctl
	install -D -m 644 systemd/vifd.socket $(DESTDIR)$(LIBDIR)/systemd/system/vifd.socket
	install -D -m 644 systemd/vifd.service $(DESTDIR)$(LIBDIR)/systemd/system/vifd.service
	sed -i 's|^ExecStart=/usr/bin/vifd|ExecStart=$(PREFIX)/bin/vifd|' $(DESTDIR)$(LIBDIR)/systemd/system/vifd.service
	install -D -m 644 systemd/vifd.sysusers $(DESTDIR)$(LIBDIR)/sysusers.d/vifd.conf
	install -D -m 644 systemd/vifd.tmpfiles $(DESTDIR)$(LIBDIR)/tmpfiles.d/vifd.conf
	test -e $(DESTDIR)$(SYSCONFDIR)/vifd/vifd.toml || install -m 644 demo/vifd.toml $(DESTDIR)$(SYSCONFDIR)/vifd/vifd.toml
	test -n "$(DESTDIR)" || ! command -v systemd-sysusers || systemd-sysusers $(LIBDIR)/sysusers.d/vifd.conf
	test -n "$(DESTDIR)" || ! command -v systemd-tmpfiles || systemd-tmpfiles --create $(LIBDIR)/tmpfiles.d/vifd.conf
	test -n "$(DESTDIR)" -o ! -d /run/systemd/system || systemctl daemon-reload
	@echo "installed; to start it: systemctl enable --now vifd.socket vifd.service"

uninstall: ## Take away what install made; the configuration and the state stay (root)
	-test -n "$(DESTDIR)" -o ! -d /run/systemd/system || systemctl disable --now vifd.service vifd.socket
	test ! -e $(DESTDIR)$(PREFIX)/pyvenv.cfg || rm -rf $(DESTDIR)$(PREFIX)
	rm -f $(DESTDIR)$(BINDIR)/vifd $(DESTDIR)$(BINDIR)/vifctl $(DESTDIR)$(BINDIR)/vif-sanity $(DESTDIR)$(DATADIR)/bash-completion/completions/vifctl
	rm -f $(addprefix $(DESTDIR)$(LIBDIR)/,systemd/system/vifd.service systemd/system/vifd.socket sysusers.d/vifd.conf tmpfiles.d/vifd.conf)
	test -n "$(DESTDIR)" -o ! -d /run/systemd/system || systemctl daemon-reload

clean: ## Remove what the other targets made in this checkout
	rm -rf .venv vif build dist .cache .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis bench.json
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
