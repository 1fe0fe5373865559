#!/usr/bin/env python3
"""Compares lorarun's token ids with those of Hugging Face `tokenizers`.

    python check_tokenizer.py [--texts N] [--every-character] LORARUN TOKENIZER_FOLDER...

LORARUN is the program; each folder holds a tokenizer.json. Needs the package tokenizers (0.22.2; 0.23.3 gives the same ids).
Prints one line for each folder; ends with an error at the first difference, which it prints with its text.
"""
import argparse
import pathlib
import subprocess
import sys
import tempfile

from tokenizers import Tokenizer

import tokenizer_texts

SCRIPT = pathlib.Path(__file__).with_name("tokenize.lua")


def ours(program, folder, texts, max_length):
    with tempfile.TemporaryDirectory() as scratch:
        texts_file, ids_file = pathlib.Path(scratch, "texts"), pathlib.Path(scratch, "ids")
        with texts_file.open("wb") as f:
            for text in texts:
                data = text.encode()
                f.write(b"%d\n%s" % (len(data), data))
        subprocess.run([program, SCRIPT, folder, texts_file, ids_file] + ([str(max_length)] if max_length else []), check=True)
        lines = [[int(i) for i in line.split()] for line in ids_file.read_text().splitlines()]
    return lines[0::2], lines[1::2]


def theirs(tokenizer, texts, max_length):
    tokenizer.no_truncation()
    plain = [e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=False)]
    if max_length:
        tokenizer.enable_truncation(max_length)
    return [e.ids for e in tokenizer.encode_batch(texts)], plain


def compare(program, folder, texts, max_length):
    tokenizer = Tokenizer.from_file(str(pathlib.Path(folder, "tokenizer.json")))
    tokenizer.no_padding()
    got, expected = ours(program, folder, texts, max_length), theirs(tokenizer, texts, max_length)
    for special, (a, b) in enumerate(zip(got, expected)):
        if len(a) != len(b):
            raise AssertionError(f"{folder}: {len(a)} texts came back, {len(b)} went in")
        for text, x, y in zip(texts, a, b):
            if x != y:
                at = next((i for i, (p, q) in enumerate(zip(x, y)) if p != q), min(len(x), len(y)))
                raise AssertionError(
                         f"{folder}: {'without' if special else 'with'} special tokens, max_length {max_length}, token {at}\n"
                         f"text {text!r}\n{ascii(text)}\nlorarun    {x[max(0, at - 3):at + 8]}\n"
                         f"tokenizers {y[max(0, at - 3):at + 8]}\n{tokenizer.encode(text).tokens[max(0, at - 3):at + 8]}")
    return sum(map(len, got[0]))


def check(program, folder, texts):
    tokens = compare(program, folder, texts, None)
    compare(program, folder, texts[:500], 16)
    return f"{len(texts)} texts, {tokens} tokens: equal"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--texts", type=int, default=4000)
    parser.add_argument("--every-character", action="store_true", help="also every code point of Unicode, in contexts")
    parser.add_argument("program")
    parser.add_argument("folders", nargs="+")
    args = parser.parse_args()
    texts = tokenizer_texts.texts(args.texts, 1)
    if args.every_character:
        texts += tokenizer_texts.every_character()
    for folder in args.folders:
        print(f"{folder}: {check(args.program, folder, texts)}")


if __name__ == "__main__":
    main()
