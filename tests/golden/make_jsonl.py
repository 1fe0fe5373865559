"""Makes tests/golden/jsonl_rows.txt: rows of JSON Lines, and whether Python's json module accepts them; for
tests/units/test_dataset_large.c.

    python tests/golden/make_jsonl.py

Each line is "1" (good) or "0" (bad), then a mutated object. Good means: UTF-8, one object, no NaN or Infinity, no lone surrogates.
"""
import json
import pathlib
import random

SEEDS = [
    b'{"text":"words","score":1.5,"more":[1,-2.5e3,{"a":null}]}',
    b'{"a\\"b":"\\u00e9\\uD83D\\uDE00\\n","b":[],"d":[[true,false],[0.0E+1]]}',
    ' { "k" : "caf\u00e9 \u20ac \U0001f600" , "n" : -0 , "l" : [ "x" , "" ] } '.encode(),
    b"{}",
]
ALPHABET = b'{}[]",:\\u0123456789abcdefDEnN.-+ \ttrueInfinity\x00\x01\x1f\x7f\x80\xbf\xc3\xa9\xed\xa0\xe2\xf0\xf4\x90\xff'


def mutate(draw):
    row = bytearray(draw.choice(SEEDS))
    for _ in range(draw.randint(1, 2)):
        if not row:
            break
        at, byte, other = draw.randrange(len(row)), draw.choice(ALPHABET), draw.randrange(len(row))
        match draw.randrange(4):
            case 0:
                row[at] = byte
            case 1:
                row.insert(at, byte)
            case 2:
                del row[at]
            case 3:
                row[at], row[other] = row[other], row[at]
    return bytes(row)


def refuse(word):
    raise ValueError(word)


def good(row):
    try:
        value = json.loads(row.decode("utf-8"), parse_constant=refuse)
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # lone surrogates have no UTF-8
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict)


def main():
    draw = random.Random(1)
    rows = sorted({row for row in (mutate(draw) for _ in range(2500)) if row.strip(b" \t\r")})
    text = b"".join((b"1" if good(row) else b"0") + row + b"\n" for row in rows)
    pathlib.Path(__file__).with_name("jsonl_rows.txt").write_bytes(text)


main()
