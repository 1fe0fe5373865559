#!/usr/bin/env python3
"""Writes tests/golden/tokenizer/folders.jsonl: folders with a tokenizer_config.json and similar files, and the ids that
transformers' AutoTokenizer gives with them. Run it once with each generation of transformers; a run replaces the ids of its own
generation:

    "$venv/bin/python" tests/golden/make_tokenizer_folders.py     # transformers 4.57.6; and 5.23.0

First line: "texts". Then a line for each folder: "base" (a folder of tests/golden); "changes" to its files, [file, [key, ...],
value], or [file, [key, ...]] to remove a key, or [file] to remove a file; "4" and "5", or "both" if they are the same: the ids of
each whole text and of each text with max_length 9, or a string if AutoTokenizer cannot load the folder.
"""
import json
import os
import pathlib
import shutil
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
import transformers  # noqa: E402

HERE = pathlib.Path(__file__).resolve().parent
OUT = HERE / "tokenizer" / "folders.jsonl"
CONFIG, FILE, MODEL, MAP, ADDED = ("tokenizer_config.json", "tokenizer.json", "config.json", "special_tokens_map.json",
                                   "added_tokens.json")
TEXTS = ["The Foo bar, Résumé ÉTÉ  [MASK]  the [MASKED", "x = y[i]  <|im_end|>  + <|endoftext|>1", "日本語 text 👍", "",
         "FOO Foo foo <mask> the\tTHE", " [CLS] a [SEP]b[PAD] [mask] [UNK] "]
LONG = 9


def token(content, **flags):
    return {"content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True,
            **flags}


def decoder(index, content, **flags):
    return [CONFIG, ["added_tokens_decoder", index], token(content, **flags)]


def added(index, content, id, **flags):
    return [FILE, ["added_tokens", index], {"id": id, **token(content, **flags)}]


NO_DECODER = [CONFIG, ["added_tokens_decoder"]]
NO_MAP = [MAP]
CASES = [
    ("bert", "as it is", []),
    ("bert", "do_lower_case false", [[CONFIG, ["do_lower_case"], False]]),
    ("bert", "do_lower_case true over a cased tokenizer.json", [[FILE, ["normalizer", "lowercase"], False]]),
    ("bert", "do_lower_case by default", [[CONFIG], [FILE, ["normalizer", "lowercase"], False]]),
    ("bert", "strip_accents false", [[CONFIG, ["strip_accents"], False]]),
    ("bert", "strip_accents true in a cased one", [[CONFIG, ["strip_accents"], True], [CONFIG, ["do_lower_case"], False]]),
    ("bert", "tokenize_chinese_chars false", [[CONFIG, ["tokenize_chinese_chars"], False]]),
    ("bert", "truncation_side left", [[CONFIG, ["truncation_side"], "left"]]),
    ("bert", "truncation on the left in tokenizer.json", [
        [FILE, ["truncation"], {"direction": "Left", "max_length": 5, "stride": 0, "strategy": "LongestFirst"}]]),
    ("bert", "truncation_side right over tokenizer.json's", [
        [CONFIG, ["truncation_side"], "right"],
        [FILE, ["truncation"], {"direction": "Left", "max_length": 5, "stride": 0, "strategy": "LongestFirst"}]]),
    ("bert", "truncation_side null", [[CONFIG, ["truncation_side"], None]]),
    ("bert", "split_special_tokens", [[CONFIG, ["split_special_tokens"], True]]),
    ("bert", "a special token strips in added_tokens_decoder", [decoder("4", "[MASK]", lstrip=True, rstrip=True)]),
    ("bert", "a special token is a whole word in added_tokens_decoder", [decoder("4", "[MASK]", single_word=True)]),
    ("bert", "a word in added_tokens_decoder", [decoder("232", "Foo", special=False, lstrip=True)]),
    ("bert", "a normalized word in added_tokens_decoder", [decoder("232", "foo", special=False, normalized=True)]),
    ("bert", "a normalized word where the normalizer is written over", [
        decoder("232", "Foo", special=False, normalized=True), [CONFIG, ["do_lower_case"], False]]),
    ("bert", "a token of tokenizer.json that added_tokens_decoder lacks", [added(5, "Foo", 232, special=False)]),
    ("bert", "another id than the next", [decoder("240", "Foo", special=False)]),
    ("bert", "added_tokens.json", [NO_DECODER, [ADDED, ["Foo"], 232]]),
    ("bert", "no added_tokens_decoder", [NO_DECODER]),
    ("bert", "special_tokens_map.json's tokens", [NO_DECODER, [MAP, ["mask_token"], "Foo"], [MAP, ["sep_token"], "foo"]]),
    ("bert", "special_tokens_map.json does not count beside added_tokens_decoder", [[MAP, ["mask_token"], "Foo"]]),
    ("bert", "another mask_token", [[CONFIG, ["mask_token"], "<mask>"]]),
    ("bert", "an AddedToken as mask_token", [[CONFIG, ["mask_token"], {"__type": "AddedToken", **token("Foo", rstrip=True)}]]),
    ("bert", "additional_special_tokens", [[CONFIG, ["extra_special_tokens"]], [CONFIG, ["additional_special_tokens"], ["Foo"]]]),
    ("bert", "extra_special_tokens", [[CONFIG, ["extra_special_tokens"], {"x_token": "Foo"}]]),
    ("bert", "extra_special_tokens as a list", [[CONFIG, ["extra_special_tokens"], ["Foo"]]]),
    ("bert", "another cls_token", [[CONFIG, ["cls_token"], "[MASK]"]]),
    ("bert", "the model's old form without a type", [
        [FILE, ["model", "type"]], [FILE, ["normalizer", "type"]], NO_DECODER, NO_MAP]),
    ("bert", "another pre_tokenizer", [[FILE, ["pre_tokenizer"], {"type": "WhitespaceSplit"}]]),
    ("bert", "another pre_tokenizer, PreTrainedTokenizerFast", [
        [FILE, ["pre_tokenizer"], {"type": "WhitespaceSplit"}], [CONFIG, ["tokenizer_class"], "PreTrainedTokenizerFast"]]),
    ("bert", "another pre_tokenizer, TokenizersBackend", [
        [FILE, ["pre_tokenizer"], {"type": "WhitespaceSplit"}], [CONFIG, ["tokenizer_class"], "TokenizersBackend"]]),
    ("bert", "no normalizer", [[FILE, ["normalizer"], None]]),
    ("bert", "clean_text false", [[FILE, ["normalizer", "clean_text"], False]]),
    ("bert", "a longest word of its own", [[FILE, ["model", "max_input_chars_per_word"], 3]]),
    ("bert", "DistilBertTokenizer", [[CONFIG, ["tokenizer_class"], "DistilBertTokenizer"], [CONFIG, ["do_lower_case"], False]]),
    ("bert", "MPNetTokenizer", [
        [CONFIG, ["tokenizer_class"], "MPNetTokenizer"], [CONFIG, ["bos_token"], "[CLS]"], [CONFIG, ["eos_token"], "[SEP]"],
        [CONFIG, ["do_lower_case"], False]]),
    ("bert", "a class of the model's configuration", [
        [CONFIG, ["tokenizer_class"]], [MODEL, ["tokenizer_class"], "PreTrainedTokenizerFast"],
        [FILE, ["pre_tokenizer"], {"type": "WhitespaceSplit"}]]),
    ("bert", "model_input_names and padding", [
        [CONFIG, ["padding_side"], "left"], [CONFIG, ["clean_up_tokenization_spaces"], True], [CONFIG, ["model_max_length"], 7],
        [FILE, ["padding"], {"strategy": {"Fixed": 20}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0,
                             "pad_type_id": 0, "pad_token": "[PAD]"}]]),
    ("bert", "a token that tokenizer.json's padding names", [
        [CONFIG, ["tokenizer_class"], "PreTrainedTokenizerFast"], [CONFIG, ["pad_token"]], NO_DECODER, NO_MAP,
        [FILE, ["padding"], {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                             "pad_type_id": 0, "pad_token": "Foo"}]]),
    ("bert", "an AddedToken that added_tokens_decoder lacks", [
        [CONFIG, ["added_tokens_decoder", "4"]],
        [CONFIG, ["mask_token"], {"__type": "AddedToken", **token("[MASK]", lstrip=True)}]]),
    ("bert", "a named token is special", [decoder("4", "[MASK]", special=False), [CONFIG, ["split_special_tokens"], True]]),
    ("qwen2", "as it is", []),
    ("qwen2", "a token of added_tokens.json with flags in special_tokens_map.json", [
        NO_DECODER, [ADDED, ["Foo"], 320], [MAP, ["pad_token"], token("Foo", lstrip=True)]]),
    ("qwen2", "a class that is not the model's", [[CONFIG, ["tokenizer_class"], "GPT2Tokenizer"]]),
    ("qwen2", "the model's old form without a type", [[FILE, ["model", "type"]], [CONFIG, ["truncation_side"], "left"]]),
    ("qwen2", "truncation_side left", [[CONFIG, ["truncation_side"], "left"]]),
    ("qwen2", "split_special_tokens", [[CONFIG, ["split_special_tokens"], True]]),
    ("qwen2", "add_bos_token and add_eos_token do not count", [
        [CONFIG, ["add_bos_token"], True], [CONFIG, ["add_eos_token"], True]]),
    ("qwen2", "add_prefix_space", [[CONFIG, ["add_prefix_space"], True]]),
    ("qwen2", "a token that is not named strips in added_tokens_decoder", [decoder("319", "<|im_end|>", lstrip=True, rstrip=True)]),
    ("qwen2", "a named token strips in added_tokens_decoder", [decoder("317", "<|endoftext|>", lstrip=True)]),
    ("qwen2", "no added_tokens_decoder, no map", [NO_DECODER, NO_MAP]),
    ("qwen2", "a post-processor that adds a token", [
        [FILE, ["post_processor"], {
            "type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}},
                                                     {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [317], "tokens": ["<|endoftext|>"]}}}]]),
    ("qwen2", "no post-processor", [[FILE, ["post_processor"], None]]),
    ("qwen2", "another pattern", [[FILE, ["pre_tokenizer", "pretokenizers", 0, "pattern", "Regex"], "\\s+|\\S+"]]),
    ("qwen2", "PreTrainedTokenizerFast", [[CONFIG, ["tokenizer_class"], "PreTrainedTokenizerFast"]]),
    ("qwen2", "ignore_merges", [[FILE, ["model", "ignore_merges"], True]]),
    ("qwen2", "no class", [[CONFIG, ["tokenizer_class"]]]),
    ("qwen2", "nothing but config.json", [[CONFIG], [MAP]]),
    ("tokenizer/roberta", "RobertaTokenizer", [
        [CONFIG, ["tokenizer_class"], "RobertaTokenizer"], [CONFIG, ["add_prefix_space"], False], [MODEL, ["model_type"], "bert"]]),
    ("tokenizer/roberta", "RobertaTokenizer, a space before", [
        [CONFIG, ["tokenizer_class"], "RobertaTokenizer"], [CONFIG, ["add_prefix_space"], True], [MODEL, ["model_type"], "bert"]]),
    ("tokenizer/roberta", "another mask_token", [
        [CONFIG, ["tokenizer_class"], "RobertaTokenizer"], [CONFIG, ["mask_token"], "Foo"], [MODEL, ["model_type"], "bert"]]),
    ("tokenizer/gpt2", "GPT2Tokenizer, a space before", [
        [CONFIG, ["tokenizer_class"], "GPT2Tokenizer"], [CONFIG, ["add_prefix_space"], True], [MODEL, ["model_type"], "bert"]]),
]


def change(values, keys, *value):
    for key in keys[:-1]:
        values = values.setdefault(key, {}) if isinstance(values, dict) else values[key]
    if not value:
        values.pop(keys[-1], None)
    elif isinstance(values, list) and keys[-1] == len(values):
        values.append(value[0])
    else:
        values[keys[-1]] = value[0]


def ids(base, changes):
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        for name in (CONFIG, FILE, MODEL, MAP, ADDED):
            if (HERE / base / name).exists():
                shutil.copy(HERE / base / name, folder / name)
        for name, *rest in changes:
            if not rest:
                (folder / name).unlink()
                continue
            values = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
            change(values, *rest)
            (folder / name).write_text(json.dumps(values))
        try:
            tok = transformers.AutoTokenizer.from_pretrained(folder)
        except Exception as error: # whatever the error, this generation cannot use the folder
            return type(error).__name__
        return ([tok(t)["input_ids"] for t in TEXTS] +
                [tok(t, truncation="longest_first", max_length=LONG)["input_ids"] for t in TEXTS])


def main():
    generation = transformers.__version__.split(".")[0]
    transformers.logging.set_verbosity_error()
    old = {}
    if OUT.exists():
        for line in OUT.read_text().splitlines()[1:]:
            row = json.loads(line)
            old[row["base"], row["name"]] = {g: row.get(g, row.get("both")) for g in "45"}
    lines = [json.dumps({"texts": TEXTS, "max_length": LONG}, ensure_ascii=False)]
    for base, name, changes in CASES:
        of = {**old.get((base, name), {}), generation: ids(base, changes)}
        row = {"base": base, "name": name, "changes": changes,
               **({"both": of["4"]} if of.get("4") == of.get("5") and isinstance(of["4"], list) else of)}
        lines.append(json.dumps(row, ensure_ascii=False, separators=(",", ":")))
    OUT.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
