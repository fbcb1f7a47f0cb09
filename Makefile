# Every target does its own set-up: all it needs is Python 3.11 to 3.13 (with venv and pip), make and a package index.
PYTHON  ?= python3
# faiss-gpu where an NVIDIA GPU answers, faiss-cpu elsewhere; `make FLAVOUR=cpu …` decides otherwise.
FLAVOUR ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
LOCK    := $(if $(filter gpu,$(FLAVOUR)),requirements-gpu.lock,requirements.lock)
UV      := $(or $(shell command -v uv 2>/dev/null),.tools/bin/uv)
BIN     := .venv/bin
MILVUS  := .tools/milvus
READY   := .venv/.ready-$(FLAVOUR)
# Trust the certificates that the machine trusts, as pip does: company networks bring their own.
export UV_SYSTEM_CERTS ?= true

.DEFAULT_GOAL := help
.PHONY: help install demo test contract milvus-server soak evidence gpu-check lint format lock clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

install: $(READY) ## Create .venv from the lock file

demo: $(READY) ## Draw glyphs, train on them, evaluate, and open a visual search on http://127.0.0.1:8000
	$(BIN)/kindred demo $(ARGS)

test: $(READY) ## Run the tests
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

# Over the server that KINDRED_MILVUS_URI names, or over one that is started for it, if there is milvus-server.
contract: $(READY) ## Run the tests of what every store does, also over a Milvus server
	PATH="$(CURDIR)/$(MILVUS)/bin:$$PATH" $(BIN)/python -m pytest tests/serve/store/contract $(ARGS)

milvus-server: $(MILVUS)/bin/milvus-server ## Install a Milvus server for the tests (Linux on x86-64)

$(MILVUS)/bin/milvus-server: | $(UV)
	$(UV) venv --quiet --clear --python $(PYTHON) $(MILVUS)
	# Its start script imports pkg_resources.
	$(UV) pip install --quiet --python $(MILVUS)/bin/python milvus==2.3.5 'setuptools<81'

soak: $(READY) ## Kill, load and fuzz the service for many minutes
	PYTHONPATH=. $(BIN)/python tests/soak/store_kill.py
	PYTHONPATH=. $(BIN)/python tests/soak/store_load.py
	PYTHONPATH=. $(BIN)/python tests/soak/embed_kill.py
	if [ -x $(MILVUS)/bin/milvus-server ]; then \
	  PATH="$(CURDIR)/$(MILVUS)/bin:$$PATH" PYTHONPATH=. $(BIN)/python tests/soak/milvus_kill.py; fi
	PYTHONPATH=. $(BIN)/python tests/soak/hostile.py
	KINDRED_MACHINE_EXAMPLES=500 $(BIN)/python -m pytest --timeout 3600 tests/serve/store/contract/test_machine.py
	KINDRED_COMPILE=1 $(BIN)/python -m pytest tests/models/inference
	KINDRED_FUZZ_BODIES=10000 KINDRED_FUZZ_EXAMPLES=100 $(BIN)/python -m pytest -s --timeout 7200 \
	  tests/serve/api/test_fuzz.py tests/serve/api/test_openapi.py

# Those experiments that have a reduced part.
EVIDENCE = $(patsubst configs/experiment/%.yaml,%,$(shell grep -l '^reduced:' configs/experiment/*.yaml))

evidence: $(READY) ## Repeat the experiments in brief: do the published conclusions hold?
	printf '%s\n' $(EVIDENCE) | xargs -P 2 -I '{}' $(BIN)/kindred experiment '{}' --reduced --check \
	  --out runs/evidence/'{}' $(ARGS)

# With the Python, the torch and the other packages that the machine has.
gpu-check: ## On a machine with CUDA: tests and measurements of what runs there, as one table
	$(PYTHON) tests/benchmarks/gpu_check.py $(ARGS)

lint: $(READY) ## Check format, lint rules and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY) ## Format the code and apply safe lint fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: $(UV) ## Resolve the two lock files anew
	for flavour in cpu gpu; do \
	  $(UV) pip compile pyproject.toml --extra $$flavour --extra onnx --extra milvus --extra dev --universal --generate-hashes \
	    --python-version 3.11 --quiet --no-emit-index-url --no-annotate --no-header \
	    --output-file requirements$$(test $$flavour = gpu && echo -gpu).lock || exit 1; \
	done

clean: ## Remove the environment and every cache
	rm -rf .venv .tools .mypy_cache .ruff_cache .pytest_cache .hypothesis

.tools/bin/uv:
	$(PYTHON) -m venv .tools
	.tools/bin/python -m pip install --quiet --disable-pip-version-check uv

$(READY): $(LOCK) pyproject.toml | $(UV)
	test -x $(BIN)/python || $(UV) venv --quiet --python $(PYTHON) .venv
	# Compiled once here, in parallel: else the first command of each kind would, for half a minute.
	$(UV) pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes $(LOCK)
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	# Batch Renormalization's kernels for a CPU, where there is a C++ compiler; training goes without them, too.
	-@$(BIN)/python -c 'from models.renorm import native; native.try_build()'
	@rm -f .venv/.ready-*
	@touch $@
