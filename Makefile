# Every target sets itself up. It needs Python 3.11 to 3.13 (with venv and pip), make and a package index.
PYTHON  ?= python3
# faiss-gpu if there is an NVIDIA GPU, else faiss-cpu; override with `make FLAVOUR=cpu …`.
FLAVOUR ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
LOCK    := $(if $(filter gpu,$(FLAVOUR)),requirements-gpu.lock,requirements.lock)
UV      := $(or $(shell command -v uv 2>/dev/null),.tools/bin/uv)
BIN     := .venv/bin
MILVUS  := .tools/milvus
READY   := .venv/.ready-$(FLAVOUR)
# Trust the machine's certificates, as pip does: company networks have their own.
export UV_SYSTEM_CERTS ?= true

.DEFAULT_GOAL := help
.PHONY: help install demo test contract milvus-server soak evidence gpu-check lint format lock clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

install: $(READY) ## Create .venv from the lock file

demo: $(READY) ## Draw characters, train on them, evaluate, and open the search page on http://127.0.0.1:8000
	$(BIN)/kindred demo $(ARGS)

test: $(READY) ## Run the tests
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

# Uses the server that KINDRED_MILVUS_URI names, or else starts an installed milvus-server.
contract: $(READY) ## Run the tests that every store must pass, over a Milvus server too
	PATH="$(CURDIR)/$(MILVUS)/bin:$$PATH" $(BIN)/python -m pytest tests/serve/store/contract $(ARGS)

milvus-server: $(MILVUS)/bin/milvus-server ## Install a Milvus server for `make contract` (Linux on x86-64)

$(MILVUS)/bin/milvus-server: | $(UV)
	$(UV) venv --quiet --clear --python $(PYTHON) $(MILVUS)
	# Its start script imports pkg_resources.
	$(UV) pip install --quiet --python $(MILVUS)/bin/python milvus==2.3.5 'setuptools<81'

soak: $(READY) ## Kill, overload and fuzz the service (takes long)
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

# Experiments with a reduced part.
EVIDENCE = $(patsubst configs/experiment/%.yaml,%,$(shell grep -l '^reduced:' configs/experiment/*.yaml))

evidence: $(READY) ## Check the published conclusions with short experiments
	printf '%s\n' $(EVIDENCE) | xargs -P 2 -I '{}' $(BIN)/kindred experiment '{}' --reduced --check \
	  --out runs/evidence/'{}' $(ARGS)

# Uses the machine's own Python, torch and other packages.
gpu-check: ## Test and measure on a CUDA GPU, and write one table
	$(PYTHON) tests/benchmarks/gpu_check.py $(ARGS)

lint: $(READY) ## Check format, lint rules and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY) ## Format the code and apply safe lint fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: $(UV) ## Update the two lock files
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
	# Compile bytecode now, in parallel; the first command of each kind would take half a minute for it.
	$(UV) pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes $(LOCK)
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	# Compile Batch Renormalization's CPU kernels if there is a C++ compiler; training works without them.
	-@$(BIN)/python -c 'from models.renorm import native; native.try_build()'
	@rm -f .venv/.ready-*
	@touch $@
