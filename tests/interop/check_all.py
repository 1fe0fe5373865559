#!/usr/bin/env python3
"""Every check that needs the libraries of one generation, in one process, because importing them takes most of the time.

    python check_all.py LORARUN SCRATCH_FOLDER WRITTEN_FOLDER NAME=MODEL_FOLDER...

WRITTEN_FOLDER holds what lorarun wrote for each model: NAME (merged weights, with the adapter inside) and NAME.json (the embeddings
with the adapter). Prints a line for each check, and last "N passed, N failed"; the exit status is 1 if one failed.
"""

import contextlib
import io
import json
import logging
import os
import shutil
import subprocess
import sys
import traceback
from pathlib import Path

os.environ.update(TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")

import peft
import sentence_transformers
import torch
import transformers
from safetensors.torch import load_file, save_file

import check_accelerate
import check_adapters
import check_folders
import check_tokenizer
import check_tokenizer_folders
import make_folders
import tokenizer_texts

transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()
logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
torch.set_num_threads(1)  # the models are tiny
lorarun, scratch, written = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
bases = dict(argument.split("=", 1) for argument in sys.argv[4:])
ADAPTERS = {
    "minilm": {},
    "qwen2": dict(use_rslora=True),
    "bert": dict(target_modules="all-linear", rank_pattern={"value": 3}, alpha_pattern={"layer.1.attention.self.query": 5}),
}
QUERY = dict(prompts={"query": "query: ", "document": "passage: "}, default_prompt_name="query")
MODELS = {
    "minilm": [("cls", False, None, QUERY)],
    "qwen2": [("lasttoken", True, 24, QUERY), ("mean", False, None, {})],
    "bert": [("cls", True, None, {}), ("mean", False, 24, dict(prompts={"query": "query: "})), ("weightedmean", True, 40, QUERY)],
}
passed = failed = 0


def run(name, check, *arguments, **keywords):
    """Runs a check and counts the result; the other checks run even if it fails."""
    global passed, failed
    try:
        detail = check(*arguments, **keywords)
        passed += 1
        print(f"ok     {name}" + (f": {detail}" if detail else ""), flush=True)
    except Exception as error:  # a library that refuses the folder is also a failed check
        failed += 1
        if not isinstance(error, AssertionError):
            traceback.print_exc(file=sys.stdout)
        print(f"FAILED {name}: {error}", flush=True)


def probes(mode, folder, *last):
    """What lorarun computes with a folder; see probes.lua."""
    command = [lorarun, str(Path(__file__).with_name("probes.lua")), mode, str(folder), str(Path(folder, "probes.json")), *last]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return done.stdout.strip().splitlines()[-1]


def read_adapter(base, folder, again, settings):
    """lorarun computes the same with PEFT's adapter, and PEFT computes the same with the adapter that lorarun wrote from it."""
    make_folders.adapter(base, folder, **settings)
    seen = probes("save", folder, again)
    check_folders.adapter_keys(base, again)
    given = json.loads(Path(folder, "probes.json").read_text())
    expected = torch.tensor(given["embeddings"], dtype=torch.float64)
    check_folders.same(check_folders.unmerged_embeddings(base, again, given["texts"]), expected, 1e-4)
    return seen


def read_plain_adapter(base, adapter, folder):
    make_folders.plain_adapter(base, adapter, folder)
    return probes("check", folder)


def python_of_verify(folder, expected):
    """The lines that `lorarun verify --python` prints say whether sentence-transformers gives the same."""
    command = [lorarun, "verify", "--python", str(folder)]
    code = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True, text=True).stdout
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(code, {})
    assert said.getvalue().startswith(expected), said.getvalue()
    return said.getvalue().strip()


def left_out(folder, again):
    """A folder with an adapter that changes nothing, as if a library left the adapter out."""
    shutil.copytree(folder, again)
    path = str(Path(again, "adapter_model.safetensors"))
    save_file({key: torch.zeros_like(value) for key, value in load_file(path).items()}, path, {"format": "pt"})
    return python_of_verify(again, "OTHER EMBEDDINGS")


def read_model(base, folder, *settings):
    make_folders.model(base, folder, *settings[:3], **settings[3])
    return probes("check", folder)


texts = tokenizer_texts.texts(4000, 1)
for name, base in bases.items():
    run(f"{name}: token ids", check_tokenizer.check, lorarun, base, texts)
run("folders of tokenizers", check_tokenizer_folders.check, lorarun, scratch)
run("Accelerate's configuration", check_accelerate.check, lorarun, scratch)
for name, base in bases.items():
    given = json.loads((written / f"{name}.json").read_text())
    for what, check in check_folders.checks(base, str(written / name), str(written / name / "adapter"), given):
        run(f"{name}, written by lorarun: {what}", check)
    folder, again = str(scratch / f"{name}-adapter"), str(scratch / f"{name}-again")
    run(f"{name}: an adapter that PEFT trained", read_adapter, base, folder, again, ADAPTERS[name])
    run(f"{name}: the same as PEFT alone saves it", read_plain_adapter, base, folder, str(scratch / f"{name}-plain"))
    for what in (written / name, written / name / "adapter"):
        run(f"{name}: lorarun verify --python {what.name}", python_of_verify, what, "the same embeddings")
    for i, settings in enumerate(MODELS[name]):
        run(f"{name}: saved with {settings}", read_model, base, str(scratch / f"{name}-saved-{i}"), *settings)
run("random adapters of PEFT", check_adapters.check, lorarun, scratch, {name: bases[name] for name in ("qwen2", "bert")})
run("an adapter that is left out", left_out, written / "bert" / "adapter", scratch / "left-out")
print(f"sentence-transformers {sentence_transformers.__version__}, transformers {transformers.__version__}, PEFT {peft.__version__}: "
      f"{passed} passed, {failed} failed")
sys.exit(1 if failed else 0)
