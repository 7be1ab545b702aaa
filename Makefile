# make demo    erases one object from the bundled model and leaves the pictures, the file and a report in out/
# make test    everything CI runs: ruff, mypy, pytest
# make gpu-check  what only a GPU can show, in at most 8 minutes and without network; without a GPU it says so
# make lint    ruff and mypy alone          make clean   removes .venv, out/ and caches
#
# All of them share the private environment .venv, made on first use and again when pyproject.toml changes.
#   PYTHON=python3.12         the interpreter it is made from (3.10 to 3.13; default python3)
#   TORCH=torch==2.13.0       the torch requirement
#   TORCH_INDEX=URL           where torch alone is looked for. By default pip's own index; on Linux without nvidia-smi
#                             torch's index of builds for CPUs, where that can be reached

PYTHON ?=
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
export PYTHON TORCH TORCH_INDEX

# The tests and the demo are offline: nothing may reach for a model hub.
export HF_HUB_OFFLINE = 1
export HF_HUB_DISABLE_TELEMETRY = 1

PY = .venv/bin/python

.NOTPARALLEL:
.PHONY: demo test gpu-check lint format clean env env-dev

demo: env
	@$(PY) -m proving_ground demo --out out

test: lint
	@$(PY) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

gpu-check: env
	@$(PY) -m benchmarks.gpu_check

lint: env-dev
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

format: env-dev
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

env:
	@bash tools/setup_env.sh standalone

env-dev:
	@bash tools/setup_env.sh standalone,dev

clean:
	rm -rf .venv out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
