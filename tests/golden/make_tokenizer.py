#!/usr/bin/env python3
"""Writes tests/golden/tokenizer/: small tokenizers, and the ids that Hugging Face's library gives with them.

    pip install tokenizers==0.22.2
    python tests/golden/make_tokenizer.py

NAME/tokenizer.json is a tokenizer; NAME.jsonl has lines of {"text", "ids", "plain"}: "ids" with special tokens, "plain" without;
some have a "max_length", which applies to "ids". The vocabularies are trained on a few texts and have a few hundred tokens each.
"""
import collections
import json
import pathlib
import random
import sys

import tokenizers
from tokenizers import (AddedToken, Regex, Tokenizer, models, normalizers as N, pre_tokenizers as P, processors,
                        trainers)

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "interop"))
import tokenizer_texts  # noqa: E402

assert tokenizers.__version__ == "0.22.2", "the golden files are of tokenizers 0.22.2"
OUT = HERE / "tokenizer"
QWEN2 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
CL100K = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
          r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
CORPUS = [tokenizer_texts.CODE] * 4 + [" ".join(tokenizer_texts.WORDS).replace("\0", "")] * 3 # a JSON key cannot hold \0


def bpe(size, normalizer, pre_tokenizer, special, **options):
    t = Tokenizer(models.BPE(**options))
    if normalizer:
        t.normalizer = normalizer
    t.pre_tokenizer = pre_tokenizer
    t.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=P.ByteLevel.alphabet(), special_tokens=special, show_progress=False))
    return t


def wordpiece(size, normalizer, pre_tokenizer, **options):
    """Not trained, because the library's trainer gives another vocabulary on each run: the vocabulary is the most frequent
    beginnings and continuations of words, ordered by count and then by spelling."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    counts = collections.Counter()
    for text in CORPUS:
        for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text)):
            for i in range(len(word)):
                counts.update(("##" if i else "") + word[i:j] for j in range(i + 1, min(i + 8, len(word)) + 1))
    tokens = special + sorted(counts, key=lambda t: (-counts[t] * len(t.removeprefix("##")), t))[:size - len(special)]
    t = Tokenizer(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]", **options))
    t.add_special_tokens(special)
    t.normalizer = normalizer
    t.pre_tokenizer = pre_tokenizer
    return t


def byte_level(regex):
    return P.Sequence([P.Split(Regex(regex), "isolated"), P.ByteLevel(add_prefix_space=False, use_regex=False)])


def qwen2():
    t = bpe(700, N.NFC(), byte_level(QWEN2), [])
    t.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    t.post_processor = processors.ByteLevel(trim_offsets=False)
    return t


def qwen3_embedding():
    t = qwen2()
    end = t.token_to_id("<|endoftext|>")
    t.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), processors.TemplateProcessing(
        single="$A <|endoftext|>", pair="$A $B", special_tokens=[("<|endoftext|>", end)])])
    return t


def roberta():
    t = bpe(500, None, P.ByteLevel(add_prefix_space=True), ["<s>", "<pad>", "</s>", "<unk>"])
    t.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    t.post_processor = processors.RobertaProcessing(("</s>", t.token_to_id("</s>")), ("<s>", t.token_to_id("<s>")))
    return t


def gpt2():
    t = bpe(450, None, P.ByteLevel(add_prefix_space=False), ["<|endoftext|>"])
    t.add_tokens([AddedToken(" " * n, normalized=True) for n in range(2, 20)])
    return t


def llama3():
    t = bpe(600, None, byte_level(CL100K), [], ignore_merges=True)
    t.add_special_tokens(["<|endoftext|>"] + [f"<|reserved_{i}|>" for i in range(100)])
    t.post_processor = processors.TemplateProcessing("<|endoftext|> $A", None, [("<|endoftext|>", t.token_to_id("<|endoftext|>"))])
    return t


def starcoder():
    return bpe(450, N.NFKC(), P.Sequence([P.Digits(True), P.ByteLevel(add_prefix_space=True)]), ["<|endoftext|>"])


def bert():
    t = wordpiece(700, N.BertNormalizer(), P.BertPreTokenizer())
    t.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    t.add_special_tokens([AddedToken("[MASK]", lstrip=True, rstrip=True)])
    return t


def bert_cased():
    t = wordpiece(600, N.BertNormalizer(clean_text=True, handle_chinese_chars=True, strip_accents=False, lowercase=False),
                  P.BertPreTokenizer(), max_input_chars_per_word=12)
    t.add_tokens([AddedToken("fox", single_word=True), AddedToken("Naïve", normalized=True), AddedToken("über", lstrip=True)])
    t.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)])
    return t


def mixed():
    """All other normalizers and pre-tokenizers, in one pipeline."""
    t = wordpiece(500, N.Sequence([N.Strip(), N.NFKD(), N.StripAccents(), N.Lowercase(), N.Replace("``", '"'), N.Replace("--", "-"),
                                   N.Prepend("_")]),
                  P.Sequence([P.Whitespace(), P.Digits(False), P.Punctuation("merged_with_previous"),
                              P.Split(Regex("[xy]\\b|q+"), "merged_with_next"), P.Split("ing", "removed"),
                              P.Split(Regex(r"[aeiou]{2,3}"), "contiguous", invert=True)]))
    t.add_tokens([AddedToken("Émile", normalized=True)])
    return t


def scripts():
    """Splits by classes of characters, each in its own way."""
    return wordpiece(500, N.NFD(), P.Sequence([
        P.WhitespaceSplit(), P.Split(Regex(r"\p{Han}|[\p{Lu}\p{Mn}]+|\w\B\S"), "isolated"), P.Split(Regex(r"[^\S\n]|\d+(?=\D)"), "removed"),
        P.Split(Regex(r"\p{So}"), "merged_with_previous", invert=True)]))


def main():
    out = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else OUT
    for make in (qwen2, qwen3_embedding, roberta, gpt2, llama3, starcoder, bert, bert_cased, mixed, scripts):
        t, name = make(), make.__name__
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        spec = json.loads(t.to_str())
        if name == "gpt2": # merges in the form of files from before tokenizers 0.20
            spec["model"]["merges"] = [" ".join(pair) for pair in spec["model"]["merges"]]
        text = json.dumps(spec, ensure_ascii=False, separators=(",", ":"))
        (folder / "tokenizer.json").write_text(text + "\n")
        t = Tokenizer.from_str(text)
        rng = random.Random(name)
        lines = []
        for text in tokenizer_texts.texts(40, name):
            text = text[:110]
            line = {"text": text, "plain": t.encode(text, add_special_tokens=False).ids}
            if rng.random() < .2:
                line["max_length"] = rng.randrange(3, 12)
                t.enable_truncation(line["max_length"])
            line["ids"] = t.encode(text).ids
            t.no_truncation()
            lines.append(json.dumps(line, ensure_ascii=True, separators=(",", ":")) + "\n")
        (out / f"{name}.jsonl").write_text("".join(lines))


if __name__ == "__main__":
    main()
