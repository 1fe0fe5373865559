# Makefile: the front door. Each target is a few calls of the scripts in tools/, which check what is there before they act, so a
# second call has nothing to do. The build itself is CMakeLists.txt.
#
#   make run ARGS="--max-steps 10"       options of the recipe
#   make install PREFIX=/usr DESTDIR=... staged installs
#   make fuzz SECONDS=600                time for each fuzzer
#   make -j4                             passed on to the build
BUILD   ?= build
PREFIX  ?= /usr/local
ARGS    ?=
SECONDS ?= 60
JOBS    := $(or $(patsubst -j%,%,$(filter -j%,$(MAKEFLAGS))),$(JOBS))
export DESTDIR JOBS

.NOTPARALLEL:
.PHONY: all run test install bench bench-gpu interop lint sanitize fuzz clean help

all: ## install what is missing, build build/lorarun
	@tools/setup.sh build
	@TARGET=lorarun tools/build.sh "$(BUILD)"

run: ## build, fetch the small model, fine-tune it with recipes/bugdetect.lua (options: ARGS="...")
	@tools/setup.sh build model
	@tools/fetch_model.sh
	@TARGET=lorarun tools/build.sh "$(BUILD)"
	@"$(BUILD)/lorarun" recipes/bugdetect.lua $(ARGS)

test: ## set up as for run, then every test
	@tools/setup.sh build model test
	@tools/fetch_model.sh
	@tools/build.sh "$(BUILD)"
	@tools/ctest.sh "$(BUILD)" $(ARGS)

install: all ## put the program, recipes and docs below PREFIX (and DESTDIR)
	@cmake --install "$(BUILD)" --prefix "$(PREFIX)"

bench: ## the benchmarks: kernels, tokenizer, a whole training step
	@tools/setup.sh build model
	@tools/fetch_model.sh
	@tools/build.sh "$(BUILD)"
	@tools/bench.sh "$(BUILD)" $(ARGS)

bench-gpu: ## the benchmarks that need a GPU: ceilings, products, kernels, steps of a 7B; skipped where there is none
	@tools/setup.sh build
	@TARGET=lorarun tools/build.sh "$(BUILD)"
	@"$(BUILD)/lorarun" bench/gpu/run.lua $(ARGS) || [ $$? -eq 77 ]

interop: ## do folders written here load in sentence-transformers and PEFT, and theirs here?
	@tools/setup.sh build model interop
	@tools/fetch_model.sh
	@TARGET=lorarun tools/build.sh "$(BUILD)"
	@tests/interop/run.sh "$(BUILD)"

lint: ## formatting, luacheck, shellcheck, house rules
	@tools/setup.sh lint
	@tools/lint.sh

sanitize: ## every test, and CUDA's kernels on the CPU, under AddressSanitizer and UndefinedBehaviorSanitizer, in build-asan
	@tools/setup.sh build model test
	@tools/fetch_model.sh
	@tools/build.sh build-asan -DCMAKE_BUILD_TYPE=Debug -DLORARUN_SANITIZE=address,undefined -DLORARUN_CUDA=host
	@tools/ctest.sh build-asan $(ARGS)

fuzz: ## libFuzzer on every parser and the store's two sides, SECONDS=60 each, in build-fuzz
	@tools/setup.sh build fuzz
	@tools/fuzz.sh build-fuzz "$(SECONDS)" $(ARGS)

clean: ## remove the build folders
	rm -rf "$(BUILD)" build-asan build-fuzz

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 18
