#!/usr/bin/env python3
"""Makes the small models of this folder and what Hugging Face's libraries compute with them.

    venv=$(tests/interop/setup.sh) && "$venv/bin/python" tests/golden/make_golden.py [--model NAME]... [FOLDER]

--model writes the files of that model alone (NAME/, NAME.json, NAME.safetensors, adapters/NAME_*) and reads texts.json, which must
exist. Without it, everything is written again, texts.json included. To add a model, add a row to MODELS: its results depend on the
texts and on its own seeds, never on the other models.

Everything follows from the fixed seeds below: two runs with the pinned versions on one kind of processor write the same
bytes. Models are written by sentence-transformers, adapters by PEFT, and every number is what those libraries compute in fp32
on the CPU, with texts encoded one at a time. README.md lists the files and their contents; the
optimizer, schedule and metric values have a script of their own, make_numbers.py.
"""

import argparse
import json
import os
import re
import shutil
import unicodedata
import warnings
from collections import Counter
from typing import Callable, NamedTuple

os.environ.update(TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer, losses, models
from sentence_transformers.util import batch_to_device
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import BPE, WordPiece
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Model,
    Qwen2TokenizerFast,
    get_linear_schedule_with_warmup,
)

MAX_LENGTH = 64
RANK, ALPHA = 4, 8
QUERY_PROMPT = "Represent this query for searching relevant code: "
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# ---- texts ----------------------------------------------------------------------------------------------------------------

SOURCE = '''def merge_intervals(intervals, limit=None):
    """Join overlapping intervals; the result is sorted by start."""
    result = []
    for start, end in sorted(intervals):
        if result and start <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((start, end))
    return result if limit is None else result[:limit]

class Cache:
    def __init__(self, size):
        self.size = size
        self.items = {}

    def get(self, key, default=None):
        value = self.items.pop(key, default)
        if value is not None:
            self.items[key] = value
        return value

    def put(self, key, value):
        if len(self.items) >= self.size:
            self.items.pop(next(iter(self.items)))
        self.items[key] = value

def read_lines(path, encoding="utf-8"):
    with open(path, encoding=encoding) as file:
        for number, line in enumerate(file, 1):
            if not line.strip() or line.startswith("#"):
                continue
            yield number, line.rstrip("\\n")

static int count_words(const char *text, size_t length) {
    int words = 0, inside = 0;
    for (size_t i = 0; i < length; i++) {
        if (isspace((unsigned char)text[i])) inside = 0;
        else if (!inside) { inside = 1; words++; }
    }
    return words;
}

local function sum(values)
  local total = 0
  for i = 1, #values do total = total + values[i] end
  return total
end
'''

LINES = [line.strip() for line in SOURCE.splitlines() if len(line.strip()) > 7]


def prefix_with_tokens(tokenizer, text, count):
    """The shortest prefix of text that has exactly count tokens (and no space at its ends: sentence-transformers strips)."""
    for end in range(1, len(text)):
        prefix = text[:end].strip()
        if len(tokenizer.encode(prefix).ids) == count:
            return prefix
    raise ValueError(f"no prefix has {count} tokens")


def make_texts(tokenizer):
    """Twelve texts of mixed lengths in tokens of the Qwen2 tokenizer: 1, 2, 5, 17, 33, 61, beyond MAX_LENGTH, ..."""
    fixed = [
        "return",
        "x = 1",
        "naïve café, 漢字 and ☕: don't we'll it's 12345",
        "if (a != b) {\r\n\t\treturn -1;\n}\n\n   \n",
        "Who's Ａ？ é vs e\u0301 <|endoftext|> [SEP]",
        SOURCE[:700],
    ]
    cut = [prefix_with_tokens(tokenizer, SOURCE[i:], n) for i, n in ((0, 1), (36, 2), (120, 9), (44, 17), (430, 33), (700, 61))]
    return cut + fixed


def make_rows():
    """24 labelled pairs, and 6 triplets (anchor, positive, hard negative), from lines of the source in a fixed order."""
    pairs = [
        {
            "first": LINES[i % len(LINES)],
            "second": " ".join(LINES[(3 * i + 1 + j) % len(LINES)] for j in range(1 + i % 3)),
            "score": [1.0, 0.0, 1.0, 0.5, 0.0, 0.25][i % 6],
        }
        for i in range(24)
    ]
    triplets = [[LINES[i], LINES[i] + " " + LINES[i + 1], LINES[-1 - i]] for i in range(6)]
    return pairs, triplets


# ---- tokenizers -----------------------------------------------------------------------------------------------------------


def qwen2_tokenizer(append_end):
    """Byte-level BPE with Qwen2's pipeline. append_end adds the post-processor of Qwen3-Embedding: <|endoftext|> at the end."""
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=317, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=[], show_progress=False
    )
    tokenizer.train_from_iterator([SOURCE], trainer)
    end = "<|endoftext|>"
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in (end, "<|im_start|>", "<|im_end|>")])
    post = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    if append_end:
        template = processors.TemplateProcessing(
            single=f"$A {end}", pair=f"$A {end} $B:1 {end}:1", special_tokens=[(end, tokenizer.token_to_id(end))]
        )
        post = processors.Sequence([post, template])
    tokenizer.post_processor = post
    return Qwen2TokenizerFast(
        tokenizer_object=tokenizer, pad_token=end, eos_token=end, unk_token=None, model_max_length=32768, split_special_tokens=False
    )


def bert_tokenizer():
    """WordPiece with BertNormalizer (lower case, accents stripped). The vocabulary consists of characters and of the most
    frequent whole words and word ends, because the library's own trainer gives another one on every run."""
    corpus = (SOURCE + " naïve café, 漢字 and don't we'll it's 12345").lower()
    corpus = "".join(c for c in unicodedata.normalize("NFD", corpus) if not unicodedata.combining(c))
    characters = sorted(set(corpus) - set(" \n\t"))
    words = Counter(re.findall(r"[a-z]{2,}", corpus))
    ends = Counter()
    for word, count in words.items():
        ends.update({"##" + word[-length:]: count for length in (2, 3) if len(word) > length + 1})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = special + characters + ["##" + c for c in characters if c.isalnum() and ord(c) < 128]
    for pieces, number in ((words, 100), (ends, 60)):
        vocabulary += sorted(pieces, key=lambda piece: (-pieces[piece], piece))[:number]
    tokenizer = Tokenizer(WordPiece({token: i for i, token in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return BertTokenizerFast(tokenizer_object=tokenizer, do_lower_case=True, model_max_length=MAX_LENGTH)


# ---- models ---------------------------------------------------------------------------------------------------------------


def draw_weights(model, seed):
    """Weights with which attention is neither flat nor one-hot and no output is degenerate: 1.5/sqrt(fan in)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name.lower() and name.endswith("weight"):
                parameter.copy_(1 + 0.2 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.2 * noise)
            elif "embed" in name:
                parameter.copy_(noise * (0.5 if "position" in name or "token_type" in name else 1.0))
            else:
                parameter.copy_(noise * 1.5 / parameter.shape[1] ** 0.5)
    return model.eval()


def write_folder(model, tokenizer, folder, pooling, prompts=None):
    """Saves a transformer, its tokenizer and the sentence-transformers files around it as one model folder."""
    inner = folder + ".transformer"
    model.save_pretrained(inner)
    tokenizer.save_pretrained(inner)
    transformer = models.Transformer(inner, max_seq_length=MAX_LENGTH)
    sentence = SentenceTransformer(
        modules=[transformer, models.Pooling(model.config.hidden_size, pooling), models.Normalize()],
        prompts=prompts,
        similarity_fn_name="cosine",
        device="cpu",
    )
    shutil.rmtree(folder, ignore_errors=True)
    sentence.save_pretrained(folder, create_model_card=False)
    # The causal model saves itself: sentence-transformers would save the model without head, under names without "model.".
    shutil.copy(os.path.join(inner, "model.safetensors"), os.path.join(folder, "model.safetensors"))
    shutil.copy(os.path.join(inner, "config.json"), os.path.join(folder, "config.json"))
    shutil.rmtree(inner)
    for name in ("vocab.json", "merges.txt", "vocab.txt"):  # tokenizer.json has their contents
        if os.path.exists(os.path.join(folder, name)):
            os.remove(os.path.join(folder, name))
    compact_json(os.path.join(folder, "tokenizer.json"))


def compact_json(path):
    with open(path, encoding="utf-8") as file:
        value = json.load(file)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=False, separators=(",", ":"))
        file.write("\n")


def qwen2_config(tokenizer, **sizes):
    return Qwen2Config(
        vocab_size=len(tokenizer),
        max_position_embeddings=512,
        rope_theta=1e6,
        rms_norm_eps=1e-6,
        use_sliding_window=False,
        bos_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **sizes,
    )


def make_qwen2(folder):
    tokenizer = qwen2_tokenizer(append_end=False)
    config = qwen2_config(
        tokenizer, hidden_size=64, num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=2, intermediate_size=40
    )
    prompts = {"query": QUERY_PROMPT, "document": ""}
    write_folder(draw_weights(Qwen2Model(config), 1), tokenizer, folder, "lasttoken", prompts)


def make_qwen2_causal(folder, tied, dtype, seed):
    tokenizer = qwen2_tokenizer(append_end=True)
    config = qwen2_config(
        tokenizer,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=48,
        tie_word_embeddings=tied,
    )
    write_folder(draw_weights(Qwen2ForCausalLM(config), seed).to(dtype), tokenizer, folder, "lasttoken")


def make_bert(folder):
    tokenizer = bert_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=72,
        hidden_act="gelu",
        max_position_embeddings=MAX_LENGTH,
        type_vocab_size=2,
    )
    write_folder(draw_weights(BertModel(config), 2), tokenizer, folder, "mean")


# ---- adapters -------------------------------------------------------------------------------------------------------------


def load(folder):
    """The model in fp32, whatever dtype the file has, without dropout."""
    return SentenceTransformer(folder, device="cpu", model_kwargs={"dtype": torch.float32}).eval()


def add_lora(sentence, seed, zero_b=False, **options):
    """Adds an adapter; A is drawn as PEFT draws it, B is random (or zero). Returns the PEFT model."""
    torch.manual_seed(seed)
    config = LoraConfig(task_type="FEATURE_EXTRACTION", lora_dropout=0.0, **options)
    adapted = get_peft_model(sentence[0].auto_model, config)
    sentence[0].auto_model = adapted
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in sorted(adapted.named_parameters()):
            if "lora_B" in name:
                noise = 0.3 * torch.randn(parameter.shape, generator=generator)
                parameter.copy_(torch.zeros_like(noise) if zero_b else noise)
    sentence.eval()
    return adapted


def save_adapter(adapted, folder, base):
    """PEFT's own folder without its model card, with a base path that works on every machine (from the root of the repository)."""
    shutil.rmtree(folder, ignore_errors=True)
    adapted.peft_config["default"].base_model_name_or_path = "tests/golden/" + base
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Could not find a config file")  # the base path is relative to another folder
        adapted.save_pretrained(folder)
    os.remove(os.path.join(folder, "README.md"))
    path = os.path.join(folder, "adapter_config.json")
    with open(path, encoding="utf-8") as file:
        config = json.load(file)
    config["target_modules"].sort()  # PEFT keeps a set, whose order differs from run to run
    with open(path, "w", encoding="utf-8") as file:
        json.dump(config, file, indent=2, sort_keys=True)


def adapter_tensors(adapted):
    return {key: value.detach().clone().contiguous() for key, value in get_peft_model_state_dict(adapted).items()}


def adapter_gradients(adapted):
    """The gradients under the names that the adapter's tensors have in adapter_model.safetensors."""
    suffix = ".default.weight"
    return {
        name[: -len(suffix)] + ".weight": parameter.grad.detach().clone()
        for name, parameter in adapted.named_parameters()
        if parameter.requires_grad and name.endswith(suffix)
    }


def encode(sentence, texts, **options):
    rows = [sentence.encode([text], convert_to_tensor=True, show_progress_bar=False, **options)[0] for text in texts]
    return torch.stack(rows).clone()


def loss_of(sentence, loss, columns, labels):
    features = [batch_to_device(sentence.tokenize(column), "cpu") for column in columns]
    return loss(features, labels)


def cosine_batch(sentence, pairs):
    columns = [[pair["first"] for pair in pairs], [pair["second"] for pair in pairs]]
    return loss_of(sentence, losses.CosineSimilarityLoss(sentence), columns, torch.tensor([pair["score"] for pair in pairs]))


def mnr_batch(sentence, triplets):
    loss = losses.MultipleNegativesRankingLoss(sentence, scale=20.0)
    return loss_of(sentence, loss, [list(column) for column in zip(*triplets)], None)


def training_curve(sentence, adapted, pairs, steps=20, batch=6, warmup=4, learning_rate=1e-2, clip=0.4):
    """AdamW without weight decay, linear schedule, clipping that some steps need and some do not; rows in order, over and
    over."""
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=learning_rate, weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, warmup, steps)
    curve = {"rows": [], "loss": [], "grad_norm": [], "learning_rate": []}
    for step in range(steps):
        rows = [(step * batch + i) % len(pairs) for i in range(batch)]
        loss = cosine_batch(sentence, [pairs[row] for row in rows])
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_([p for p in adapted.parameters() if p.requires_grad], clip)
        curve["rows"].append(rows)
        curve["loss"].append(loss.item())
        curve["grad_norm"].append(norm.item())
        curve["learning_rate"].append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    settings = {"steps": steps, "batch": batch, "warmup": warmup, "learning_rate": learning_rate, "clip": clip,
                "weight_decay": 0.0, "betas": [0.9, 0.999], "epsilon": 1e-8}
    return {"settings": settings, **curve}


# ---- what each architecture computes --------------------------------------------------------------------------------------


def golden_plain(folder, texts, hidden_of=None):
    """Token ids and embeddings of the texts, and the hidden states of one text layer by layer."""
    sentence = load(folder)
    ids = [sentence.tokenize([text])["input_ids"][0].tolist() for text in texts]
    tensors = {"embeddings": encode(sentence, texts)}
    if sentence.prompts.get("query"):
        tensors["embeddings_query"] = encode(sentence, texts, prompt_name="query")
    if hidden_of is not None:
        with torch.no_grad():
            output = sentence[0].auto_model(torch.tensor([ids[hidden_of]]), output_hidden_states=True)
        for i, hidden in enumerate(output.hidden_states[:-1]):
            tensors[f"hidden.{i}"] = hidden[0].contiguous()
        tensors["last_hidden_state"] = output.last_hidden_state[0].contiguous()
    return {"ids": ids, "hidden_text": hidden_of}, tensors


def golden_lora(root, name, texts, pairs, triplets, targets, seed):
    """Everything about adapters for the model folder `name`; writes the adapter folders, returns (values, tensors)."""
    folder, adapters = os.path.join(root, name), os.path.join(root, "adapters")
    values, tensors = {}, {}
    variants = {
        "lora": {"r": RANK, "lora_alpha": ALPHA, "target_modules": targets},
        "rslora": {"r": 2, "lora_alpha": 4, "target_modules": targets, "use_rslora": True,
                   "rank_pattern": {targets[0]: 3}, "alpha_pattern": {targets[2]: 8}},
        "all_linear": {"r": 2, "lora_alpha": 2, "target_modules": "all-linear"},
    }
    for variant, options in variants.items():
        sentence = load(folder)
        adapted = add_lora(sentence, seed, **options)
        save_adapter(adapted, os.path.join(adapters, f"{name}_{variant}"), name)
        tensors[f"embeddings_{variant}"] = encode(sentence, texts)

    sentence = load(folder)
    adapted = add_lora(sentence, seed, **variants["lora"])
    for label, loss in (("cosine", cosine_batch(sentence, pairs[:6])), ("mnr", mnr_batch(sentence, triplets))):
        adapted.zero_grad()
        loss.backward()
        values[label] = {"loss": loss.item()}
        tensors.update({f"grad.{label}.{key}": value for key, value in adapter_gradients(adapted).items()})

    sentence = load(folder)
    adapted = add_lora(sentence, seed, zero_b=True, **variants["lora"])
    values["curve"] = training_curve(sentence, adapted, pairs)
    tensors.update({f"final.{key}": value for key, value in adapter_tensors(adapted).items()})
    tensors["embeddings_final"] = encode(sentence, texts)
    return values, tensors


def write(root, name, values, tensors):
    save_file({key: value.float().contiguous() for key, value in tensors.items()}, os.path.join(root, name + ".safetensors"),
              metadata={"format": "pt"})
    write_json(os.path.join(root, name + ".json"), values)


def write_json(path, value):
    """One line per member, so that files are short and diffs readable."""
    with open(path, "w", encoding="utf-8") as file:
        members = (f"{json.dumps(key)}: {json.dumps(member, ensure_ascii=False)}" for key, member in value.items())
        file.write("{\n" + ",\n".join(members) + "\n}\n")


class Golden(NamedTuple):
    """make(folder) writes the model's folder. For models with adapters: the targets (queries, keys and values) and their seed."""

    make: Callable[[str], None]
    targets: tuple[str, ...] = ()
    seed: int = 0


MODELS = {
    "qwen2": Golden(make_qwen2, ("q_proj", "k_proj", "v_proj"), 10),
    "bert": Golden(make_bert, ("query", "key", "value"), 20),
    "qwen2_tied": Golden(lambda folder: make_qwen2_causal(folder, True, torch.bfloat16, 3)),
    "qwen2_head": Golden(lambda folder: make_qwen2_causal(folder, False, torch.float16, 4)),
}


def make(root, name, texts, pairs, triplets):
    """All files of one model."""
    golden, folder = MODELS[name], os.path.join(root, name)
    golden.make(folder)
    if not golden.targets:
        write(root, name, *golden_plain(folder, texts))
        return
    values, tensors = golden_plain(folder, texts, hidden_of=2)
    lora_values, lora_tensors = golden_lora(root, name, texts, pairs, triplets, list(golden.targets), golden.seed)
    write(root, name, {**values, **lora_values}, {**tensors, **lora_tensors})


def main():
    parser = argparse.ArgumentParser(description="Makes golden models: see the head of this file.")
    parser.add_argument("--model", action="append", choices=MODELS, help="write this model alone; may be given several times")
    parser.add_argument("folder", nargs="?", default=os.path.dirname(os.path.abspath(__file__)))
    given = parser.parse_args()
    root = given.folder
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    os.makedirs(root, exist_ok=True)

    path = os.path.join(root, "texts.json")
    if given.model:
        with open(path, encoding="utf-8") as file:
            rows = json.load(file)
        texts, pairs, triplets = rows["texts"], rows["pairs"], rows["triplets"]
    else:
        texts = make_texts(qwen2_tokenizer(append_end=False).backend_tokenizer)
        pairs, triplets = make_rows()
        write_json(path, {"texts": texts, "pairs": pairs, "triplets": triplets})
    for name in given.model or MODELS:
        make(root, name, texts, pairs, triplets)


if __name__ == "__main__":
    main()
