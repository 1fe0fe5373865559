#!/usr/bin/env python3
"""Trains a small LoRA adapter with sentence-transformers and PEFT, for lorarun to load.

    python make_adapter.py MODEL_FOLDER OUT_FOLDER [--rank 8] [--alpha 16] [--targets q_proj,k_proj,v_proj] [--rslora]
                           [--steps 20] [--texts TEXTS.json] [--seed 1]

OUT_FOLDER becomes what SentenceTransformer.save_pretrained writes for a model with an adapter (adapter_config.json,
adapter_model.safetensors, tokenizer, modules.json, ...), and probes.json: {"texts": [...], "embeddings": [[...], ...]} with
the embeddings that the saved folder gives once it is loaded again, in fp32, one text at a time. TEXTS.json ({"texts": [...]})
replaces the built-in probe texts. Prints one line; exits with 1 where the adapter changes nothing.
"""

import argparse
import json
import os
import sys

os.environ.update(TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")

import torch
from peft import LoraConfig
from sentence_transformers import SentenceTransformer, losses

FP32 = {"dtype": torch.float32}
TARGETS = {"qwen2": ["q_proj", "k_proj", "v_proj"], "bert": ["query", "key", "value"]}
PAIRS = [
    ("if size < 0:", "def grow(self, size):\n    if size < 0:\n        raise ValueError(size)", 1.0),
    ("return left + right", "def difference(left, right):\n    return left + right", 0.0),
    ("for i in range(len(items)):", "total = 0\nfor i in range(len(items)):\n    total += items[i]", 1.0),
    ("while low <= high:", "low, high = 0, len(values)\nwhile low <= high:\n    middle = (low + high) // 2", 0.0),
    ("file.close()", "file = open(path)\ntext = file.read()\nfile.close()", 1.0),
    ("if name is not None:", "if name is not None:\n    name = default_name()", 0.0),
]
# No white space at the ends: sentence-transformers strips it up to version 5.3, not from 5.4 on.
TEXTS = ["x", "return None", "for (int i = 0; i <= n; i++) sum += a[i];", "naïve café, 漢字: don't",
         "def area(width, height):\n    \"\"\"The area of a rectangle.\"\"\"\n    return width * height\n\n" * 3 + "area(2, 3)"]


def encode(sentence, texts):
    return torch.stack([sentence.encode([text], convert_to_tensor=True, show_progress_bar=False)[0] for text in texts])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_folder")
    parser.add_argument("out_folder")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--alpha", type=int, default=16)
    parser.add_argument("--targets", help="names of linear layers, or all-linear; default: query, key and value")
    parser.add_argument("--rslora", action="store_true")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--texts")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    texts = TEXTS
    if args.texts:
        with open(args.texts, encoding="utf-8") as file:
            texts = json.load(file)["texts"]
    torch.manual_seed(args.seed)
    sentence = SentenceTransformer(args.model_folder, device="cpu", model_kwargs=FP32)
    plain = encode(sentence, texts)
    targets = args.targets.split(",") if args.targets else TARGETS[sentence[0].auto_model.config.model_type]
    sentence.add_adapter(
        LoraConfig(
            task_type="FEATURE_EXTRACTION",
            r=args.rank,
            lora_alpha=args.alpha,
            lora_dropout=0.1,
            target_modules="all-linear" if targets == ["all-linear"] else targets,
            use_rslora=args.rslora,
        )
    )
    loss = losses.CosineSimilarityLoss(sentence)
    optimizer = torch.optim.AdamW([p for p in sentence.parameters() if p.requires_grad], lr=3e-3, weight_decay=0.0)
    sentence.train()
    labels = torch.tensor([pair[2] for pair in PAIRS])
    values = []
    for _ in range(args.steps):
        value = loss([sentence.tokenize([pair[column] for pair in PAIRS]) for column in (0, 1)], labels)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    sentence.eval()
    sentence.save_pretrained(args.out_folder, create_model_card=False)

    adapted = encode(SentenceTransformer(args.out_folder, device="cpu", model_kwargs=FP32), texts)
    with open(os.path.join(args.out_folder, "probes.json"), "w", encoding="utf-8") as file:
        json.dump({"texts": texts, "embeddings": adapted.tolist()}, file)
    change = (adapted - plain).abs().max().item()
    print(f"{args.out_folder}: loss {values[0]:.4f} -> {values[-1]:.4f} in {args.steps} steps, embeddings changed by {change:.3g}")
    sys.exit(0 if change > 1e-3 else 1)


if __name__ == "__main__":
    main()
