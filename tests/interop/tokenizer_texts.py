"""Texts that find differences between tokenizers: code, every script, emoji, combining marks, control characters, anything."""
import random
import sys
import unicodedata

CODE = '''def normalize(self, rows, *, eps=1e-12):
    """Scale each row to length 1; rows of zeros stay."""
    norms = [max(sum(x * x for x in row) ** 0.5, eps) for row in rows]
\treturn [[x / n for x in row] for row, n in zip(rows, norms)]

if (ptr != NULL && ptr->next[i++] <<= 0x7f) { printf("%s\\n", "I'm it's we'LL they'Ve");  }
SELECT count(*) FROM t WHERE a >= 10 AND b LIKE '%x_y%';   -- 12345678901234567890
for i in range(len(self._values)):\r\n        assert self.values[i] is not None, f"{i!r}: {x:>10.3f}"\r\n
#define MAX(a,b) (((a)>(b))?(a):(b))
    $ git log --oneline | grep -E '^[0-9a-f]{7,40}\\b' > /tmp/log.txt   \x20
'''
WORDS = ("the quick brown fox_jumps over lazyDog HTTPServer2 naïve café résumé coöperate Straße ΣΊΣΥΦΟΣ İstanbul ŉ ſ ﬁ ﬀ "
         "Ångström Å ½ ² ① Ⅷ 一二三 日本語テキスト 한국어 조선 हिन्दी தமிழ் ไทย العربية עִבְרִית Ελληνικά Русский ქართული "
         "Հայերեն አማርኛ ខ្មែរ မြန်မာ བོད་ 👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪 e\u0301 a\u0323\u0302 q\u0307\u0323 \u1e9b\u0323 \u0344 \u212b \u2126 \ufb01 "
         "\u0130 \u1e9e \uff21\uff22\uff11 \u3392 \u33ff \ufdfa \u00a0 \u3000 \u200b \u200d \ufeff \ufffd \u180e \u0085 \u2028 \x00 \x1f \x7f").split(" ")
SPACES = [" ", " ", " ", "  ", "\n", "\t", "\r\n", "\u00a0", "\u2003", "\u3000", "\u0085", "", ""]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "[MASK]", "[CLS]", "[SEP]", "[UNK]", "<s>", "</s>", "<mask>", "<pad>",
           "<|im_", "[mask]", "<|endoftext", "##ing", "Ġ"]
MARKS = [c for c in range(0x110000) if unicodedata.category(chr(c))[0] == "M"]
BLOCKS = [b for b in range(0, 0x110000, 64) if not 0xD800 <= b < 0xE000]


def any_character(rng, limit=0x110000):
    while True:
        c = rng.randrange(limit)
        if not 0xD800 <= c < 0xE000:
            return chr(c)


def one(rng):
    kind = rng.randrange(10)
    size = rng.choice([1, 2, 3, 8, 20, 60])
    if kind == 0:
        at = rng.randrange(len(CODE))
        return CODE[at:at + rng.randrange(1, 200)]
    if kind == 1:
        return "".join(rng.choice(WORDS) + rng.choice(SPACES) for _ in range(size))
    if kind == 2:
        block = rng.choice(BLOCKS)
        return "".join(chr(block + rng.randrange(64)) + (" " if rng.random() < .2 else "") for _ in range(size))
    if kind == 3:
        return "".join(any_character(rng) for _ in range(size))
    if kind == 4:
        return "".join(any_character(rng, rng.choice([0x80, 0x100, 0x3000, 0x20000])) for _ in range(size))
    if kind == 5:
        return "".join(rng.choice("aeiouAEIOUc한ㄱ가क") + "".join(chr(rng.choice(MARKS)) for _ in range(rng.randrange(4)))
                       for _ in range(size))
    if kind == 6:
        return "".join(chr(rng.choice([rng.randrange(32), rng.randrange(0x7f, 0xa0), rng.randrange(32, 127)]))
                       for _ in range(size))
    if kind == 7:
        return "".join(rng.choice(SPECIAL + WORDS) + rng.choice(SPACES) for _ in range(size))
    if kind == 8:
        return rng.choice("a /=-_.\n 0Ü中") * rng.randrange(1, 300) + rng.choice(["", "b", "\n", "!"])
    return "".join(chr(rng.choice([0x1F300 + rng.randrange(0x700), 0x200D, 0xFE0F, 0x1F1E6 + rng.randrange(26),
                                   0x1F3FB + rng.randrange(5)])) for _ in range(size))


def texts(count, seed):
    rng = random.Random(seed)
    return ["", " ", CODE] + [one(rng) for _ in range(count - 3)]


def every_character():
    """All code points, 64 to a text, alone and between letters and marks."""
    for block in BLOCKS:
        points = [chr(c) for c in range(block, block + 64)]
        yield "".join(points)
        yield " ".join(points)
        yield "".join(f"a{c}\u0301B" for c in points)
        yield "".join(f"\u0323{c}\u0307 " for c in points)


if __name__ == "__main__":
    sys.stdout.write("\n".join(texts(int(sys.argv[1]), 0)))
