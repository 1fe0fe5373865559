#!/usr/bin/env python3
"""Random folders of tokenizers: lorarun's ids are those of AutoTokenizer, or lorarun refuses the folder.

    python check_tokenizer_folders.py LORARUN SCRATCH_FOLDER [COUNT [SEED]]

The folders are golden ones whose tokenizer.json, tokenizer_config.json, special_tokens_map.json, added_tokens.json and config.json
are changed at random, in keys that count or seem to count. Run it with each generation of transformers. lorarun refuses folders
that the two generations read differently, and these are many; for a folder that it accepts, its ids must be those of the
generation that runs this.
"""
import json
import os
import pathlib
import random
import subprocess
import sys

os.environ["HF_HUB_OFFLINE"] = "1"

import transformers

GOLDEN = pathlib.Path(__file__).resolve().parent.parent / "golden"
SCRIPT = pathlib.Path(__file__).with_name("tokenize_folders.lua")
TEXTS = ["The Foo bar foo bar, Résumé naïve ÉTÉ été", "x = y[i]  [MASK]  + [X] if a < b: <mask>",
         "  lead <|im_end|> in the <|endoftext|>trail  ", "日本語 text 👍 中文", "[CLS] a [SEP] b[PAD]c [UNK]", "",
         "FOO Foo foo\tbar\x00\n the theThe", "def total(rows):\n    return sum(rows)",
         "[mask] [x] <MASK> Ете́ E\u0301te\u0301", "   "]
LONG = 9
KINDS = {"bert": ("bert", "BertTokenizer"), "qwen2": ("qwen2", "Qwen2Tokenizer"), "mpnet": ("bert", "MPNetTokenizer"),
         "fast bert": ("bert", "PreTrainedTokenizerFast"), "fast qwen2": ("qwen2", "PreTrainedTokenizerFast"),
         "backend": ("bert", "TokenizersBackend"), "roberta": ("tokenizer/roberta", "RobertaTokenizer"),
         "gpt2": ("tokenizer/gpt2", "GPT2Tokenizer")}
SETTINGS = {
    "do_lower_case": [True, False], "strip_accents": [None, True, False], "tokenize_chinese_chars": [True, False],
    "truncation_side": ["left", "right"], "split_special_tokens": [True, False], "add_prefix_space": [True, False, None],
    "add_bos_token": [True], "add_eos_token": [True], "clean_up_tokenization_spaces": [True], "model_max_length": [12, 10 ** 30],
    "padding_side": ["left"], "legacy": [True]}
WORDS = ["[MASK]", "[X]", "Foo", "foo bar", "<|im_end|>", "<|endoftext|>", "Été", "the", "[CLS]", "<mask>"]
NAMED = ["mask_token", "unk_token", "eos_token", "bos_token", "cls_token", "sep_token", "pad_token"]


class Maker:
    def __init__(self, seed):
        self.random = random.Random(seed)

    def chance(self, p):
        return self.random.random() < p

    def token(self, **more):
        flags = {"single_word": .3, "lstrip": .4, "rstrip": .4, "normalized": .3, "special": .6}
        return {"content": self.random.choice(WORDS), **{k: self.chance(p) for k, p in flags.items()}, **more}

    def config(self, config, tokens):
        pick = self.random.choice
        if self.chance(.5):
            config.pop("added_tokens_decoder", None)
        if self.chance(.4):
            config.pop("extra_special_tokens", None)
        if self.chance(.08):
            config.pop("tokenizer_class")
        for key, values in SETTINGS.items():
            if self.chance(.12):
                config[key] = pick(values)
        decoder = config.get("added_tokens_decoder")
        if decoder and self.chance(.3):
            changed = self.token()
            decoder[pick(list(decoder))].update({k: v for k, v in changed.items() if k != "content"})
        if decoder and self.chance(.1):
            decoder.pop(pick(list(decoder)))
        if decoder and self.chance(.2):
            decoder[str(pick([tokens, tokens + 1, 500, 7]))] = self.token()
        if self.chance(.15):
            config[pick(NAMED)] = pick(WORDS + [None])
        if self.chance(.1):
            config[pick(NAMED)] = self.token(__type="AddedToken")
        if self.chance(.1):
            config["additional_special_tokens"] = self.random.sample(WORDS, 2)
        if self.chance(.1):
            config["extra_special_tokens"] = pick([{"image_token": pick(WORDS)}, [pick(WORDS)], []])
        if self.chance(.05):
            config["image_token"] = pick(WORDS)

    def file(self, file, tokens):
        pick = self.random.choice
        if self.chance(.2):
            changed = self.token()
            pick(file["added_tokens"]).update({k: v for k, v in changed.items() if k != "content"})
        if self.chance(.15):
            file["added_tokens"].append(self.token(id=tokens + len(file["added_tokens"])))
        normalizer = file["normalizer"]
        if normalizer and normalizer["type"] == "BertNormalizer" and self.chance(.15):
            normalizer[pick(["lowercase", "strip_accents", "handle_chinese_chars", "clean_text"])] = False
        if self.chance(.06):
            file["normalizer"] = pick([None, {"type": "Lowercase"}, {"type": "NFKC"},
                                       {"type": "Sequence", "normalizers": [normalizer or {"type": "NFC"}]}])
        if self.chance(.06):
            file["post_processor"] = None
        if file["pre_tokenizer"]["type"] == "ByteLevel" and self.chance(.06):
            file["pre_tokenizer"]["add_prefix_space"] ^= True
        if self.chance(.1):
            file["model"].pop("type")
        if self.chance(.1):
            file["truncation"] = {"direction": pick(["Left", "Right"]), "max_length": 5, "strategy": "LongestFirst", "stride": 0}
        if self.chance(.1):
            file["padding"] = {"strategy": {"Fixed": 20}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0,
                               "pad_type_id": 0, "pad_token": "[PAD]"}

    def folder(self, folder):
        base, name = KINDS[self.random.choice(list(KINDS))]
        known = {n: json.loads((GOLDEN / base / n).read_text()) for n in
                 ("tokenizer.json", "tokenizer_config.json", "config.json", "special_tokens_map.json")
                 if (GOLDEN / base / n).exists()}
        known.setdefault("config.json", {"model_type": "bert"})
        config = known.setdefault("tokenizer_config.json", {})
        config["tokenizer_class"] = name
        tokens = len(known["tokenizer.json"]["model"]["vocab"])
        self.config(config, tokens)
        self.file(known["tokenizer.json"], tokens)
        if self.chance(.5):
            known.pop("special_tokens_map.json", None)
        elif "special_tokens_map.json" in known and self.chance(.5):
            known["special_tokens_map.json"][self.random.choice(NAMED)] = self.random.choice(WORDS)
        if self.chance(.07):
            known["added_tokens.json"] = {self.random.choice(WORDS): tokens + 3}
        if self.chance(.05):
            known.pop("tokenizer_config.json")
        folder.mkdir(parents=True)
        for n, values in known.items():
            (folder / n).write_text(json.dumps(values))


def reference(folder):
    try:
        tok = transformers.AutoTokenizer.from_pretrained(folder)
        return ([tok(t)["input_ids"] for t in TEXTS] +
                [tok(t, truncation="longest_first", max_length=LONG)["input_ids"] for t in TEXTS])
    except Exception: # this generation cannot load it, or cannot encode with it
        return None


def check(program, scratch, count=100, seed=1):
    root = pathlib.Path(scratch, "tokenizers")
    maker = Maker(seed)
    for i in range(count):
        maker.folder(root / str(i))
    (root / "texts.json").write_text(json.dumps({"texts": TEXTS, "max_length": LONG}))
    subprocess.run([program, SCRIPT, root, str(count)], check=True, stdin=subprocess.DEVNULL)
    ours = json.loads((root / "ids.json").read_text())
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    taken = compared = 0
    for i in range(count):
        got = ours[i]
        if isinstance(got, str):
            assert "attempt to" not in got and ".json" in got, f"{root / str(i)}: {got}"
            continue
        taken += 1
        expected = reference(root / str(i))
        if expected is None:
            continue
        compared += 1
        for text, x, y in zip(TEXTS + TEXTS, got, expected):
            assert x == y, f"{root / str(i)}: {text!r}: lorarun {x}, transformers {transformers.__version__} {y}"
    transformers.logging.set_verbosity(verbosity)
    assert compared > count / 3, f"only {compared} of {count} folders were compared"
    return f"{compared} of {count} folders have AutoTokenizer's ids, {count - taken} are refused"


if __name__ == "__main__":
    print(check(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])))
