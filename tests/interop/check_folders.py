"""Do sentence-transformers and PEFT read the folders that lorarun wrote, and compute the same? All on the CPU in fp32."""

import json
import os

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from sentence_transformers import SentenceTransformer
from transformers import AutoModel

FP32 = {"dtype": torch.float32}


def transformer(sentence):
    """The Hugging Face model inside, in every version of sentence-transformers."""
    return sentence[0].auto_model


def encode(sentence, texts):
    return torch.stack([sentence.encode([text], convert_to_tensor=True, show_progress_bar=False)[0] for text in texts]).double()


def same(embeddings, expected, tolerance):
    assert embeddings.shape == expected.shape, f"shape {tuple(embeddings.shape)}, lorarun has {tuple(expected.shape)}"
    difference = (embeddings - expected).abs().max().item()
    assert difference <= tolerance, f"embeddings differ by {difference:.2g}, allowed is {tolerance:.2g}"
    return f"largest difference {difference:.2g}"


def some(keys):
    """A few names of a set that may be long."""
    first = sorted(keys)[:3]
    return (", ".join(first) or "none") + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def stored_tensors(folder, file_name):
    """All tensors of a safetensors file, or of the shards that an index beside it names."""
    path = os.path.join(folder, file_name)
    files = [path]
    if not os.path.exists(path):
        with open(path + ".index.json", encoding="utf-8") as index:
            files = sorted({os.path.join(folder, shard) for shard in json.load(index)["weight_map"].values()})
    tensors = {}
    for file in files:
        with safe_open(file, "pt") as opened:
            tensors.update({key: opened.get_tensor(key) for key in opened.keys()})
    return tensors


def weights_complete(base_folder, merged_folder):
    """Loading the merged folder must report no missing and no surplus weight that loading the base does not."""

    def loading(folder):
        _, info = AutoModel.from_pretrained(folder, output_loading_info=True, **FP32)
        return {kind: {str(key) for key in info[kind]} for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")}

    base, merged = loading(base_folder), loading(merged_folder)
    for kind, keys in merged.items():
        assert keys <= base[kind], f"{kind}: {some(keys - base[kind])}"
    return f"{len(stored_tensors(merged_folder, 'model.safetensors'))} tensors"


def same_settings(base, merged, texts):
    """What a model has besides its weights: prompts, length, pooling and the rest of the pipeline, tokens."""
    assert merged.prompts == base.prompts, f"prompts {merged.prompts}, the base has {base.prompts}"
    assert merged.default_prompt_name == base.default_prompt_name, "default_prompt_name differs"
    assert merged.max_seq_length == base.max_seq_length, f"max_seq_length {merged.max_seq_length}, not {base.max_seq_length}"
    kinds = [type(module).__name__ for module in merged]
    assert kinds == [type(module).__name__ for module in base], f"modules {kinds}"
    if "Pooling" in kinds:
        index = kinds.index("Pooling")
        modes = merged[index].get_config_dict()
        assert modes == base[index].get_config_dict(), f"pooling {modes}"
    for text in texts:
        ours, theirs = (model.tokenize([text])["input_ids"].tolist() for model in (merged, base))
        assert ours == theirs, f"other tokens for {text!r}"
    return ", ".join(kinds)


def load_peft(base_folder, adapter_folder):
    return PeftModel.from_pretrained(AutoModel.from_pretrained(base_folder, **FP32), adapter_folder).eval()


def adapter_keys(base_folder, adapter_folder):
    """PEFT's adapter must consist of exactly the tensors of the file, with the same values."""
    stored = stored_tensors(adapter_folder, "adapter_model.safetensors")
    loaded = get_peft_model_state_dict(load_peft(base_folder, adapter_folder))
    missing, unexpected = loaded.keys() - stored.keys(), stored.keys() - loaded.keys()
    assert not missing and not unexpected, f"missing in the file: {some(missing)}; unexpected in it: {some(unexpected)}"
    for key, value in stored.items():
        assert value.shape == loaded[key].shape and torch.equal(value.float(), loaded[key].float()), f"{key} was not loaded"
    return f"{len(stored)} tensors"


def peft_embeddings(base_folder, adapter_folder, texts):
    sentence = SentenceTransformer(base_folder, device="cpu", model_kwargs=FP32)
    adapted = load_peft(base_folder, adapter_folder)
    inner = transformer(sentence)
    inner.load_state_dict(adapted.merge_and_unload().state_dict())  # into the model that the pipeline already holds
    return encode(sentence, texts)


def unmerged_embeddings(base_folder, adapter_folder, texts):
    """With the adapter beside the weights. PEFT replaces the linear layers in place, so the pipeline sees the change."""
    sentence = SentenceTransformer(base_folder, device="cpu", model_kwargs=FP32)
    PeftModel.from_pretrained(transformer(sentence), adapter_folder).eval()
    return encode(sentence, texts)


def merged_weights(base_folder, merged_folder, adapter_folder):
    """lorarun's merged weights are those of PEFT, up to the rounding of the stored dtype."""
    expected = load_peft(base_folder, adapter_folder).merge_and_unload().state_dict()
    stored = AutoModel.from_pretrained(merged_folder, dtype="auto").state_dict()
    worst = 0.0
    for key, value in expected.items():
        rounding = torch.finfo(stored[key].dtype).eps
        scale = value.abs().max().item()
        difference = (stored[key].double() - value.double()).abs().max().item()
        limit = max(rounding, 2e-6) * max(scale, 1e-30)
        assert difference <= limit, f"{key} differs by {difference:.2g}, allowed is {limit:.2g}"
        worst = max(worst, difference)
    return f"largest difference {worst:.2g}"


def checks(base_folder, merged_folder, adapter_folder, probes, tolerance=1e-4):
    """(name, function) of each check of the folders that lorarun made from a base model. probes: {"texts": [...],
    "embeddings": [[...], ...], "max_length": n} as lorarun computed them with the adapter. A function returns a line
    about what it found, or raises."""
    texts, expected = probes["texts"], torch.tensor(probes["embeddings"], dtype=torch.float64)

    def load(folder):
        return SentenceTransformer(folder, device="cpu", model_kwargs=FP32)

    def probes_tell_something():
        assert len(texts) > 0 and len(texts) == len(expected), f"{len(texts)} texts, {len(expected)} embeddings"
        difference = (encode(load(base_folder), texts) - expected).abs().max().item()
        assert difference > 10 * tolerance, f"the adapter changes the embeddings by {difference:.2g} only: no check could fail"
        return f"the adapter changes them by {difference:.2g}"

    def lengths():
        for folder in (merged_folder, adapter_folder):
            length = load(folder).max_seq_length
            assert length == probes["max_length"], f"{length} in {folder}, lorarun has {probes['max_length']}"
        return f"{length} tokens"

    return [
        ("the probes tell adapted from plain", probes_tell_something),
        ("the longest text", lengths),
        ("merged folder: weights complete", lambda: weights_complete(base_folder, merged_folder)),
        ("merged folder: settings and tokens", lambda: same_settings(load(base_folder), load(merged_folder), texts)),
        ("merged folder: SentenceTransformer", lambda: same(encode(load(merged_folder), texts), expected, tolerance)),
        ("merged folder: PEFT's own merge", lambda: merged_weights(base_folder, merged_folder, adapter_folder)),
        ("adapter folder: keys", lambda: adapter_keys(base_folder, adapter_folder)),
        ("adapter folder: SentenceTransformer", lambda: same(encode(load(adapter_folder), texts), expected, tolerance)),
        ("adapter folder: PEFT on the base",
         lambda: same(unmerged_embeddings(base_folder, adapter_folder, texts), expected, tolerance)),
        ("adapter folder: PEFT, merged", lambda: same(peft_embeddings(base_folder, adapter_folder, texts), expected, tolerance)),
    ]
