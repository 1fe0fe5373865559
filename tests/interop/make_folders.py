"""Makes folders with sentence-transformers and PEFT for lorarun to load: models with other settings, and trained adapters. Each
gets probes.json, {"texts": [...], "embeddings": [[...], ...], "max_length": n}: the folder's embeddings after loading it again,
in fp32, one text at a time."""

import json
import os
import shutil

import torch
from peft import LoraConfig, PeftModel
from sentence_transformers import SentenceTransformer, losses, models
from transformers import AutoModel

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


def write_probes(folder):
    sentence = SentenceTransformer(folder, device="cpu", model_kwargs=FP32)
    embeddings = encode(sentence, TEXTS)
    with open(os.path.join(folder, "probes.json"), "w", encoding="utf-8") as file:
        json.dump({"texts": TEXTS, "embeddings": embeddings.tolist(), "max_length": sentence.max_seq_length}, file)
    return embeddings


def adapter(base_folder, folder, steps=20, **settings):
    """A small LoRA adapter, trained for some steps. settings: those of LoraConfig; default target_modules: query, key, value."""
    torch.manual_seed(1)
    sentence = SentenceTransformer(base_folder, device="cpu", model_kwargs=FP32)
    plain = encode(sentence, TEXTS)
    settings.setdefault("target_modules", TARGETS[sentence[0].auto_model.config.model_type])
    sentence.add_adapter(LoraConfig(task_type="FEATURE_EXTRACTION", r=8, lora_alpha=16, lora_dropout=0.1, **settings))
    loss = losses.CosineSimilarityLoss(sentence)
    optimizer = torch.optim.AdamW([p for p in sentence.parameters() if p.requires_grad], lr=3e-3, weight_decay=0.0)
    sentence.train()
    labels = torch.tensor([pair[2] for pair in PAIRS])
    for _ in range(steps):
        value = loss([sentence.tokenize([pair[column] for pair in PAIRS]) for column in (0, 1)], labels)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    sentence.eval()
    sentence.save_pretrained(folder, create_model_card=False)
    change = (write_probes(folder) - plain).abs().max().item()
    assert change > 1e-3, f"the adapter changes the embeddings by {change:.3g} only: no check could fail"


def plain_adapter(base_folder, adapter_folder, folder):
    """The same adapter as PEFT alone saves it, without tokenizer or pooling; it names its base by the path from the
    folder."""
    PeftModel.from_pretrained(AutoModel.from_pretrained(base_folder, **FP32), adapter_folder).save_pretrained(folder)
    path = os.path.join(folder, "adapter_config.json")
    with open(path, encoding="utf-8") as file:
        config = json.load(file)
    assert os.path.samefile(config["base_model_name_or_path"], base_folder)
    config["base_model_name_or_path"] = os.path.relpath(os.path.realpath(base_folder), os.path.realpath(folder))
    with open(path, "w", encoding="utf-8") as file:
        json.dump(config, file)
    shutil.copy(os.path.join(adapter_folder, "probes.json"), folder)


def model(base_folder, folder, pooling, normalize, max_length=None, **settings):
    """The base model's weights under other settings. settings: those of SentenceTransformer, such as prompts."""
    transformer = models.Transformer(base_folder, max_seq_length=max_length)
    parts = [transformer, models.Pooling(transformer.auto_model.config.hidden_size, pooling)]
    if normalize:
        parts.append(models.Normalize())
    SentenceTransformer(modules=parts, device="cpu", **settings).save(folder, create_model_card=False)
    write_probes(folder)
