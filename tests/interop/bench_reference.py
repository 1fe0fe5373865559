#!/usr/bin/env python3
"""Measures how fast sentence-transformers + PEFT train, for comparison with lorarun.

    python bench_reference.py MODEL_FOLDER TRAIN.jsonl --batch 16 --steps 10 --threads 2 --precision fp32 --max-length 512
                              [--sorted] [--targets a,b,c] [--columns current_line,context] [--score score] [--warmup 2]
                              [--gradient-checkpointing] [--device cpu] [--weights fp32]

CosineSimilarityLoss, LoRA (r 16, alpha 32, dropout 0.1), AdamW, clipping at 1, as usual: a step takes the next
`batch` rows of the file, each column is tokenized in the step and padded to its longest row. --sorted is the best that padding
allows: the same rows, ordered by length, cut into batches, and the batches shuffled. --precision bf16 is autocast over weights in
fp32, or with --weights bf16 in bf16; adapters are fp32. The first --warmup steps train but do not count. Prints one JSON object:

  pairs_per_second, tokens_per_second        real tokens: those of the texts, padding not counted
  padded_tokens_per_second, padding          tokens the model had to compute, and padded / real
  seconds, losses (every step, warm-up included), trainable_parameters, the settings, the versions
"""

import argparse
import itertools
import json
import os
import random
import time

os.environ.update(TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")

import peft
import sentence_transformers
import torch
import transformers
from peft import LoraConfig
from sentence_transformers import SentenceTransformer, losses
from sentence_transformers.util import batch_to_device

TARGETS = {"qwen2": ["q_proj", "k_proj", "v_proj"], "bert": ["query", "key", "value"]}
SEED = 1


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_folder")
    parser.add_argument("train")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--sorted", action="store_true")
    parser.add_argument("--targets", help="default: query, key and value of every layer")
    parser.add_argument("--columns", default="current_line,context")
    parser.add_argument("--score", default="score")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--weights", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    return parser.parse_args()


def read_rows(path, columns, score, count):
    """The first `count` rows; a shorter file is read again from its start."""
    with open(path, encoding="utf-8") as file:
        rows = [json.loads(line) for line in itertools.islice(filter(str.strip, file), count)]
    if not rows:
        raise SystemExit(f"{path} has no rows")
    for name in [*columns, score]:
        if name not in rows[0]:
            raise SystemExit(f"{path} has no column '{name}': it has {', '.join(rows[0])}. Name the columns with --columns, --score")
    return list(itertools.islice(itertools.cycle(rows), count))


def make_batches(rows, size, sentence, columns, by_length):
    if by_length:
        lengths = [sum(sentence.tokenize([row[column]])["input_ids"].numel() for column in columns) for row in rows]
        rows = [rows[i] for i in sorted(range(len(rows)), key=lengths.__getitem__)]
    batches = [rows[i : i + size] for i in range(0, len(rows), size)]
    if by_length:
        random.Random(SEED).shuffle(batches)
    return batches


def main():
    args = arguments()
    torch.manual_seed(SEED)
    torch.set_num_threads(args.threads)
    columns = args.columns.split(",")
    rows = read_rows(args.train, columns, args.score, args.batch * (args.warmup + args.steps))

    dtype = torch.bfloat16 if args.weights == "bf16" else torch.float32
    sentence = SentenceTransformer(args.model_folder, device=args.device, model_kwargs={"dtype": dtype})
    sentence.max_seq_length = args.max_length
    targets = args.targets.split(",") if args.targets else TARGETS[sentence[0].auto_model.config.model_type]
    sentence.add_adapter(
        LoraConfig(task_type="FEATURE_EXTRACTION", r=16, lora_alpha=32, lora_dropout=0.1, target_modules=targets)
    )
    if args.gradient_checkpointing:
        sentence[0].auto_model.enable_input_require_grads()
        sentence[0].auto_model.gradient_checkpointing_enable({"use_reentrant": False})
    trainable = [parameter for parameter in sentence.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.data = parameter.data.float()
    optimizer = torch.optim.AdamW(trainable, lr=3e-4, weight_decay=0.0)
    loss_function = losses.CosineSimilarityLoss(sentence)
    batches = make_batches(rows, args.batch, sentence, columns, args.sorted)
    sentence.train()

    values, real, padded, started = [], 0, 0, 0.0
    for step, batch in enumerate(batches):
        if step == args.warmup:
            values = [value.item() for value in values]  # waits for the device
            real = padded = 0
            started = time.perf_counter()
        features = [sentence.tokenize([row[column] for row in batch]) for column in columns]
        for feature in features:
            real += int(feature["attention_mask"].sum())
            padded += feature["attention_mask"].numel()
        features = [batch_to_device(feature, sentence.device) for feature in features]
        labels = torch.tensor([float(row[args.score]) for row in batch], device=sentence.device)
        with torch.autocast(args.device, dtype=torch.bfloat16, enabled=args.precision == "bf16"):
            loss = loss_function(features, labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        values.append(loss.detach())
    values = [float(value) for value in values]
    seconds = time.perf_counter() - started

    pairs = args.batch * args.steps
    print(
        json.dumps(
            {
                "pairs_per_second": round(pairs / seconds, 3),
                "tokens_per_second": round(real / seconds, 1),
                "padded_tokens_per_second": round(padded / seconds, 1),
                "padding": round(padded / real, 3),
                "seconds": round(seconds, 3),
                "losses": [round(value, 6) for value in values],
                "trainable_parameters": sum(parameter.numel() for parameter in trainable),
                "settings": {**vars(args), "targets": targets},
                "versions": {
                    module.__name__: module.__version__ for module in (torch, transformers, peft, sentence_transformers)
                },
            }
        )
    )


if __name__ == "__main__":
    main()
