"""Random adapters as PEFT makes them: targets, patterns that overlap, layers, exclusions and initialisations, of models with and
without a head. lorarun computes the same with each, or refuses it if its initialisation changed the base. PEFT loads the adapter
that lorarun saves on AutoModel's model and computes the same."""

import json
import os
import random
import subprocess
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

FP32 = {"dtype": torch.float32}
TEXTS = ["x = 1", "return None", "def area(width, height): return width * height", "naïve café"]
# For each architecture: the class with a head and the field that holds the model; names, expressions and keys to choose from.
KINDS = {
    "qwen2": (AutoModelForCausalLM, "model",
              ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "mlp.up_proj"],
              [r"model\.layers\.[01]\.self_attn\.(q|v)_proj", r".*\.(q|k|down)_proj", r"layers\.0\.mlp\.\w+_proj", r"(?i).*Q_PROJ"],
              [".*_proj", "q_proj", "v_proj", "layers.0.self_attn.q_proj", "model.layers.0.self_attn.q_proj", "^model.layers.1.*",
               r"layers\.[01]\..*", "(q|k)_proj", "^layers.0.*", "mlp.down_proj", "0.self_attn.v_proj"]),
    "bert": (AutoModelForMaskedLM, "bert",
             ["query", "key", "value", "dense", "attention.output.dense", "intermediate.dense", "output.dense"],
             [r".*(query|value)", r"bert\.encoder\.layer\.0\..*dense", r"encoder\.layer\.\d+\.attention\.self\.key"],
             ["query", "value", ".*", "dense", "encoder.layer.0.*", "^bert.encoder.layer.1.*", "attention.self.query", "output.dense",
              "^encoder.*dense", ".*attention.*"]),
}
CHANGE_THE_BASE = ("pissa", "olora")


def settings(kind, draw):
    """Arguments of a LoraConfig. Not every combination is possible: PEFT decides."""
    _, _, names, expressions, keys = KINDS[kind]
    config = {"r": draw.choice([2, 3, 4]), "lora_alpha": draw.choice([4, 8, 16]), "use_rslora": draw.random() < 0.3}
    which = draw.random()
    if which < 0.3:
        config["target_modules"] = draw.choice(expressions)
    elif which < 0.4:
        config["target_modules"] = "all-linear"
    else:
        config["target_modules"] = draw.sample(names, draw.randint(1, 3))
        if draw.random() < 0.4:
            config["layers_to_transform"] = draw.choice([0, 1, [0], [1], [0, 1]])
            if draw.random() < 0.5:
                config["layers_pattern"] = draw.choice(["layers", "layer", ["layers", "layer"]])
    if draw.random() < 0.25:
        config["exclude_modules"] = draw.choice([draw.sample(names, 1), r".*\.1\..*", r"model\..*", ["layers.0.self_attn.q_proj"]])
    for key, values in ("rank_pattern", [1, 2, 5]), ("alpha_pattern", [1, 3, 32]):
        if draw.random() < 0.6:
            config[key] = {name: draw.choice(values) for name in draw.sample(keys, draw.randint(1, 3))}
    if draw.random() < 0.2:
        config["init_lora_weights"] = draw.choice(["gaussian", "orthogonal", "eva", *CHANGE_THE_BASE])
    return config


def pipeline(base, kind, head):
    """sentence-transformers' model, and the model that PEFT wraps: the one inside, or the same below a head."""
    sentence = SentenceTransformer(base, device="cpu", model_kwargs=FP32)
    inner = sentence[0].auto_model
    if not head:
        return sentence, inner
    made = KINDS[kind][0].from_pretrained(base, **FP32)
    setattr(made, KINDS[kind][1], inner)
    return sentence, made


def make(base, kind, folder, draw):
    """One adapter with random weights. False if PEFT refuses the arguments that were drawn."""
    config, head = settings(kind, draw), draw.random() < 0.5
    sentence, model = pipeline(base, kind, head)
    try:
        model = get_peft_model(model, LoraConfig(**config))
    except Exception:
        return False
    changed = config.get("init_lora_weights") in CHANGE_THE_BASE
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data += torch.randn_like(parameter) * (0.2 if "lora_B" in name and not changed else 0.02)
    model.save_pretrained(folder)
    path = Path(folder, "adapter_config.json")
    saved = json.loads(path.read_text())
    saved["base_model_name_or_path"] = base
    keys = list(saved["alpha_pattern"])
    draw.shuffle(keys)  # PEFT sorts the keys; other programs do not, and the order counts
    saved["alpha_pattern"] = {key: saved["alpha_pattern"][key] for key in keys}
    saved["rank_pattern"] = config.get("rank_pattern", {})  # in the order of the tensors
    path.write_text(json.dumps(saved))
    sentence, model = pipeline(base, kind, head)
    PeftModel.from_pretrained(model, folder).eval()
    Path(folder, "expected.json").write_text(json.dumps({"texts": TEXTS, "refuse": changed, "config": config, "head": head,
                                                         "embeddings": sentence.encode(TEXTS).tolist()}))
    return True


def load_again(base, folder, expected):
    """PEFT loads the adapter on AutoModel's model; a warning from PEFT is an error."""
    sentence = SentenceTransformer(base, device="cpu", model_kwargs=FP32)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        PeftModel.from_pretrained(sentence[0].auto_model, folder).eval()
    said = [str(warning.message) for warning in caught if "adapter" in str(warning.message)]
    assert not said, f"{folder}: {said[0]}"
    difference = (sentence.encode(TEXTS, convert_to_tensor=True) - torch.tensor(expected["embeddings"])).abs().max().item()
    assert difference < 2e-5, f"{folder}: what lorarun wrote differs by {difference:.2g} in PEFT; {expected}"


def check(lorarun, scratch, bases, count=8, seed=1):
    """bases: { "qwen2": folder, "bert": folder }; `count` adapters of each."""
    torch.manual_seed(seed)
    root, again, draw = Path(scratch, "adapters"), Path(scratch, "adapters-again"), random.Random(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind, base in bases.items():
            made = 0
            while made < count:
                folder = root / f"{kind}-{made:02}"
                made += make(base, kind, str(folder), draw)
    command = [lorarun, str(Path(__file__).with_name("adapters.lua")), str(root), str(again)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    for name in sorted(os.listdir(again)):
        load_again(bases[name.split("-")[0]], str(again / name), json.loads((root / name / "expected.json").read_text()))
    return done.stdout.strip().splitlines()[-1]
