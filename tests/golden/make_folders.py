#!/usr/bin/env python3
"""Makes folders.json: what sentence-transformers computes from model folders that say the same with other keys, or differ in one
value. tests/models/test_folders.lua makes the same folders and compares.

    for generation in 5 6; do "$(tests/interop/setup.sh $generation)/bin/python" tests/golden/make_folders.py; done

A variant is a golden model with keys of its JSON files changed. The first run writes the results of generation 5, the second adds
those of generation 6: {"max": longest sequence, "embeddings": the first numbers of each text's embedding} or {"error": its class}.
"""

import json
import logging
import os
import shutil
import sys
import tempfile
import warnings

os.environ.update(TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", HF_HUB_DISABLE_PROGRESS_BARS="1")
warnings.filterwarnings("ignore")
logging.disable(logging.CRITICAL)

import transformers
from sentence_transformers import SentenceTransformer

HERE = os.path.dirname(os.path.abspath(__file__))
OUTPUT = os.path.join(HERE, "folders.json")
NUMBERS = 6  # kept of each embedding
TEXTS = ["return start if x else y", " ".join(f"x{i} = {i}" for i in range(12))]

OLD = "sentence_transformers.models."
BASE, NEW = "sentence_transformers.base.modules.", "sentence_transformers.sentence_transformer.modules."


def modules(*kinds):
    """The text of a modules.json with these types."""
    paths = {"Transformer": "", "Pooling": "1_Pooling"}
    rows = []
    for i, kind in enumerate(kinds):
        name = kind.rsplit(".", 1)[-1]
        rows.append({"idx": i, "name": str(i), "path": paths.get(name, f"{i}_{name}"), "type": kind})
    return rows


def pooling(**keys):
    return {"1_Pooling/config.json": {"=": {"word_embedding_dimension": 48, **keys}}}


def config(**keys):
    return {"config.json": keys}


def transformer(**keys):
    return {"sentence_bert_config.json": {"=": keys}}


# name: (base, {file: {key: value}}). A key "=" replaces the whole file, a value "-" removes the key, a file that is "-" is
# removed.
WINDOW = {"use_sliding_window": True, "layer_types": "-", "max_window_layers": 0}
VARIANTS = {
    "qwen2": ("qwen2", {}),
    "qwen2 without the causal mask": ("qwen2", config(is_causal=False)),
    "qwen2 with it": ("qwen2", config(is_causal=True)),
    "code for another class alone": ("qwen2", config(auto_map={"AutoModelForCausalLM": "modeling_x.Qwen2ForCausalLM"})),
    "a window that is switched off": ("qwen2", config(**{**WINDOW, "use_sliding_window": False}, sliding_window=4)),
    "a window that no layer uses": ("qwen2", config(**{**WINDOW, "max_window_layers": 3}, sliding_window=4)),
    "a window that layer_types switch off": (
        "qwen2",
        config(**{**WINDOW, "layer_types": ["full_attention"] * 3}, sliding_window=4),
    ),
    "a window as long as the texts": ("qwen2", config(**WINDOW, sliding_window=64)),
    "a window of null": ("qwen2", config(**WINDOW, sliding_window=None)),
    "rope_parameters": ("qwen2", config(rope_theta="-", rope_scaling="-", rope_parameters={"rope_theta": 50.0, "rope_type": "default"})),
    "no theta": ("qwen2", config(rope_theta="-", rope_scaling="-")),
    "keys called as methods": ("qwen2", config(number=1, integer=2, get=3, raw=4, path=5)),
    "longer than its positions": ("qwen2", config(max_position_embeddings=20)),
    "bert": ("bert", {}),
    "relatives of gelu": ("bert", config(hidden_act="gelu_fast")),
    "the length of the tokenizer": ("bert", {**transformer(do_lower_case=False), "tokenizer_config.json": {"model_max_length": 16}}),
    "the length of the tokenizer under its old name": (
        "bert",
        {**transformer(max_seq_length=None), "tokenizer_config.json": {"model_max_length": "-", "max_len": 16}},
    ),
    "no length": ("bert", {"sentence_bert_config.json": "-", "tokenizer_config.json": {"model_max_length": 10**30}}),
    "an older name of the file": (
        "bert",
        {"sentence_bert_config.json": {"=": {}}, "sentence_roberta_config.json": {"=": {"max_seq_length": 16}}},
    ),
    "tokenizer_args": ("bert", transformer(tokenizer_args={"model_max_length": 16})),
    "processing_kwargs": ("bert", transformer(max_seq_length=32, processing_kwargs={"text": {"max_length": 12}})),
    "processing_kwargs, common": (
        "bert",
        transformer(processing_kwargs={"text": {"max_length": 12}, "common": {"max_length": 9}}),
    ),
    "do_lower_case of a tokenizer that does it": ("bert", transformer(max_seq_length=64, do_lower_case=True)),
    "pooling that is not named": ("bert", pooling()),
    "pooling of no mode": ("bert", pooling(pooling_mode_cls_token=False, pooling_mode_mean_tokens=False)),
    "pooling of the first token": ("bert", pooling(pooling_mode_cls_token=True, pooling_mode_mean_tokens=False)),
    "pooling as a text": ("bert", pooling(pooling_mode="cls", pooling_mode_mean_tokens=True)),
    "pooling as a list": ("bert", pooling(pooling_mode=["cls"])),
    "pooling, weighted": ("bert", pooling(pooling_mode="weightedmean")),
    "pooling, square root": (
        "bert",
        {**pooling(pooling_mode="mean_sqrt_len_tokens"), "modules.json": {"=": modules(OLD + "Transformer", OLD + "Pooling")}},
    ),
    "modules of version 5": (
        "bert",
        {
            "modules.json": {"=": modules(OLD + "Transformer.Transformer", OLD + "Pooling.Pooling", OLD + "Dropout")},
            "2_Dropout/config.json": {"=": {"dropout": 0.5}},
        },
    ),
    "modules of version 6": (
        "bert",
        {"modules.json": {"=": modules(BASE + "transformer.Transformer", NEW + "pooling.Pooling", NEW + "Normalize")}},
    ),
    "a default prompt": (
        "bert",
        {"config_sentence_transformers.json": {"prompts": {"q": "if ", "n": None}, "default_prompt_name": "q"}},
    ),
    "a default prompt that is null": (
        "bert",
        {"config_sentence_transformers.json": {"prompts": {"n": None}, "default_prompt_name": "n"}},
    ),
    "a default prompt that every model has": (
        "bert",
        {"config_sentence_transformers.json": {"prompts": {}, "default_prompt_name": "query"}},
    ),
}


def make(folder, base, edits):
    shutil.copytree(os.path.join(HERE, base), folder)
    os.makedirs(os.path.join(folder, "2_Normalize"), exist_ok=True)  # git keeps no empty folder
    for name, keys in edits.items():
        path = os.path.join(folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if keys == "-":
            os.remove(path)
            continue
        if "=" in keys:
            content = keys["="]
        else:
            with open(path, encoding="utf-8") as file:
                content = json.load(file)
            content.update(keys)
            content = {key: value for key, value in content.items() if value != "-"}
        with open(path, "w", encoding="utf-8") as file:
            json.dump(content, file)


def compute(folder):
    try:
        model = SentenceTransformer(folder, device="cpu")
        rows = [[round(float(x), 6) for x in model.encode([text])[0][:NUMBERS]] for text in TEXTS]
        return {"max": model.max_seq_length, "embeddings": rows}
    except Exception as e:
        return {"error": type(e).__name__}


def main():
    key = "6" if int(transformers.__version__.split(".")[0]) >= 5 else "5"
    variants = []
    if key == "6":
        with open(OUTPUT, encoding="utf-8") as file:
            variants = json.load(file)["variants"]
    for i, (name, (base, edits)) in enumerate(VARIANTS.items()):
        with tempfile.TemporaryDirectory() as work:
            folder = os.path.join(work, "model")
            make(folder, base, edits)
            if key == "5":
                variants.append({"name": name, "base": base, "edits": edits})
            variants[i][key] = compute(folder)
    with open(OUTPUT, "w", encoding="utf-8") as file:
        file.write('{"texts": %s,\n "variants": [\n' % json.dumps(TEXTS))
        file.write(",\n".join("  " + json.dumps(v) for v in variants) + "]}\n")


main()
