#!/usr/bin/env python3
"""One training step under `accelerate launch`, for bench/launch.lua, which measures the time from the command to its end.

    ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 ... first_step.py MODEL_FOLDER TRAIN.jsonl BATCH

sentence-transformers with LoRA on query, key and value, CosineSimilarityLoss, AdamW; the main process prints "first step" after it.
"""

import json
import os
import sys

os.environ.update(TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")

import torch
from accelerate import Accelerator
from peft import LoraConfig
from sentence_transformers import SentenceTransformer, losses

folder, train, batch = sys.argv[1], sys.argv[2], int(sys.argv[3])
accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == int(os.environ["WORLD_SIZE"]), "the ranks have not found each other"
model = SentenceTransformer(folder, device="cpu")
model.add_adapter(LoraConfig(r=16, lora_alpha=32, lora_dropout=0.1, target_modules=["query", "key", "value"]))
with open(train, encoding="utf-8") as file:
    rows = [json.loads(next(file)) for _ in range(batch * accelerator.num_processes)]
rows = rows[accelerator.process_index :: accelerator.num_processes]
loss = losses.CosineSimilarityLoss(model)
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
loss, optimizer = accelerator.prepare(loss, optimizer)
model.train()
columns = [model.tokenize([row[column] for row in rows]) for column in ("current_line", "context")]
value = loss(columns, torch.tensor([float(row["score"]) for row in rows]))
accelerator.backward(value)
optimizer.step()
accelerator.wait_for_everyone()
if accelerator.is_main_process:
    print("first step", flush=True)
