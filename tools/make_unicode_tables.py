#!/usr/bin/env python3
"""Writes runtime/text/unicode_tables.c: how Hugging Face `tokenizers` classifies characters.

That library draws on four sources of character data, each frozen at another Unicode version, and none is the version that
PCRE2 and utf8proc carry on the machine that builds lorarun. Equal token ids need equal classes, so this script asks the library
itself, code point by code point, and writes what it answers as ranges.

    pip install tokenizers==0.22.2 unicodedata2==18.0.0     (tokenizers 0.23.3 answers the same)
    python tools/make_unicode_tables.py > runtime/text/unicode_tables.c

Run it with Python 3.11, whose own unicodedata is Unicode 14, the oldest that PCRE2 10.40 and later has.
"""
import sys
import unicodedata

import tokenizers
import unicodedata2
from tokenizers import Regex, normalizers, pre_tokenizers

assert tokenizers.__version__ in ("0.22.2", "0.23.3") and unicodedata.unidata_version == "14.0.0"
POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
CATEGORIES = "Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp".split()


def matched(pattern):
    """The code points that a one-character regular expression of tokenizers matches."""
    split = pre_tokenizers.Split(Regex(pattern), "removed", invert=True)
    found = set()
    for i in range(0, len(POINTS), 20000):
        for piece, _ in split.pre_tokenize_str("".join(map(chr, POINTS[i:i + 20000]))):
            found.update(map(ord, piece))
    return found


def separated(pre_tokenizer):
    """The code points that the pre-tokenizer splits off between two letters."""
    return {c for c in POINTS if len(pre_tokenizer.pre_tokenize_str(f"a{chr(c)}a")) > 1}


def removed(normalizer):
    return {c for c in POINTS if normalizer.normalize_str(chr(c)) == ""}


def ranges(points):
    out = []
    for c in sorted(points):
        if out and out[-1][1] == c - 1:
            out[-1][1] = c
        else:
            out.append([c, c])
    return out


def write(name, comment, items, kind="lr_range"):
    print(f"\n/* {comment} */\nconst {kind} {name}[] = {{")
    line = "   "
    for item in items:
        if len(line) + len(item) > 119:
            print(line)
            line = "   "
        line += " " + item
    print(line)
    print(f"}};\nconst size_t {name}_count = sizeof {name} / sizeof {name}[0];")


def write_set(name, comment, points):
    write(name, comment, ["{0x%X, 0x%X}," % tuple(r) for r in ranges(points)])


nfc, nfd, nfkd = normalizers.NFC(), normalizers.NFD(), normalizers.NFKD()
clean = normalizers.BertNormalizer(True, False, False, False)
bert_strip = normalizers.BertNormalizer(False, False, True, False)
lower = normalizers.Lowercase()


def reorders(c):
    """Whether the library's canonical ordering moves c: whether its combining class is not 0."""
    return (nfd.normalize_str(chr(c) + "\u0334") == "\u0334" + chr(c)
            or nfd.normalize_str("\u0345" + chr(c)) == chr(c) + "\u0345" or c in (0x334, 0x345))


def decomposes(c):
    return nfkd.normalize_str(chr(c)) != chr(c)


def second_parts(data):
    """Characters that canonical composition may join to the one before."""
    out = set(range(0x1161, 0x1176)) | set(range(0x11A8, 0x11C3))
    for c in POINTS:
        parts = data.decomposition(chr(c)).split()
        if len(parts) == 2 and not parts[0].startswith("<") and data.normalize("NFC", chr(c)) == chr(c):
            out.add(int(parts[1], 16))
    return out


newer = {c for c in POINTS if unicodedata2.combining(chr(c)) or unicodedata2.decomposition(chr(c))} | \
    second_parts(unicodedata2)
old_seconds = second_parts(unicodedata)
opaque = {c for c in newer if not reorders(c) and not decomposes(c) and
          (c not in old_seconds or unicodedata2.combining(chr(c)) or unicodedata2.decomposition(chr(c)))}
unstable = {c for c in POINTS if c not in opaque and
            (reorders(c) or nfc.normalize_str(chr(c)) != chr(c) or c in old_seconds)}

word = {c for c in POINTS if len(pre_tokenizers.Whitespace().pre_tokenize_str("a" + chr(c))) == 1
        and pre_tokenizers.Whitespace().pre_tokenize_str("a" + chr(c))[0][0] != "a"}
space = separated(pre_tokenizers.WhitespaceSplit())

print('''/* unicode_tables.c: how Hugging Face tokenizers classifies characters. Written by tools/make_unicode_tables.py (see there
 * why); do not edit. */
#include "text/unicode.h"

/* clang-format off */''')
write_set("lr_unicode_space", "White_Space", space)
write_set("lr_unicode_numeric", "what the pre-tokenizer Digits splits off", separated(pre_tokenizers.Digits(True)))
write_set("lr_unicode_punctuation", "what BertPreTokenizer and Punctuation split off",
          separated(pre_tokenizers.Punctuation()))
write_set("lr_unicode_word", "\\w of the pre-tokenizer Whitespace and of single_word tokens", word)
write_set("lr_unicode_control", "what BertNormalizer's clean_text removes", removed(clean))
write_set("lr_unicode_accent", "what BertNormalizer's strip_accents removes", removed(bert_strip))
write_set("lr_unicode_mark", "what StripAccents removes", removed(normalizers.StripAccents()))
write_set("lr_unicode_unstable", "characters that NFC may change, reorder or join to the one before", unstable)
write_set("lr_unicode_opaque", "newer than the library's normal forms, which leave them and their order alone", opaque)

changed = []
for c in POINTS:
    got = lower.normalize_str(chr(c))
    if len(got) == 1 and ord(got) != c and chr(c).lower() != got:
        changed.append((c, ord(got) - c))
runs = []
for c, delta in changed:
    if runs and runs[-1][1] == c - 1 and runs[-1][2] == delta:
        runs[-1][1] = c
    else:
        runs.append([c, c, delta])
write("lr_unicode_lower", "lower case since Unicode 14", ["{0x%X, 0x%X, %d}," % tuple(r) for r in runs], "lr_lower_range")

added = []
for name in CATEGORIES:
    own = {c for c in POINTS if unicodedata.category(chr(c)) == name}
    added += [(r[0], r[1], name) for r in ranges(matched(r"\p{%s}" % name) - own)]
write("lr_unicode_added", "general categories assigned since Unicode 14, as \\p{..} in a pattern has them",
      ['{0x%X, 0x%X, "%s"},' % r for r in sorted(added)], "lr_category_range")
write_set("lr_unicode_han", "\\p{Han} in a pattern", matched(r"\p{Han}"))
plain = set().union(*(matched(r"\p{%s}" % p) for p in ("L", "M", "Nd", "Nl", "Pc")))
write_set("lr_unicode_word_extra", "\\w in a pattern is L, M, Nd, Nl, Pc and these", matched(r"\w") - plain)
if plain - matched(r"\w") or separated(pre_tokenizers.BertPreTokenizer()) != separated(pre_tokenizers.Punctuation()) | space:
    sys.exit("the library no longer behaves as runtime/text assumes")
