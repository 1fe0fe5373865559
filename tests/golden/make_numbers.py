#!/usr/bin/env python3
"""Makes optim.json and metrics.json: reference values that need no model.

    venv=$(tests/interop/setup.sh) && "$venv/bin/python" tests/golden/make_numbers.py [FOLDER]

optim.json, from PyTorch and transformers:
  schedules   list of {kind: "linear" | "cosine" | "constant", warmup, total, factor: [...]}: the factor of the learning rate
              of steps 0 .. total; constant is transformers' constant schedule with warm-up
  adamw       list of {learning_rate: one for each step, betas, epsilon, weight_decay, start, gradients: one list for each step,
              parameters: the values after each step}, in fp32
  clip        list of {max_norm, gradients: list of lists, norm, clipped: list of lists}: torch.nn.utils.clip_grad_norm_, fp32

metrics.json, from SciPy, scikit-learn and sentence-transformers:
  correlation list of {name, x, y, pearson, spearman}; null where the correlation is not defined
  binary      list of {name, scores, labels, average_precision, roc_auc, accuracy, accuracy_threshold, f1, f1_threshold,
              precision, recall, confusion: {tp, fp, tn, fn}}; null where there is one class only. Without ties the thresholds
              are those of sentence-transformers' BinaryClassificationEvaluator. With ties it puts thresholds between equal
              scores, which is impossible; then the values come from trying every midpoint between different scores.
  sweep       list of {name, scores, labels, rows: list of {threshold, accuracy, precision, recall, f1, tp, fp, tn, fn}}
"""

import json
import os
import sys
import warnings

import numpy as np
import torch
from scipy import stats
from sentence_transformers.evaluation import BinaryClassificationEvaluator
from sklearn import metrics
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)


# ---- optim.json -----------------------------------------------------------------------------------------------------------


def schedule_case(kind, warmup, total):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = {
        "linear": lambda: get_linear_schedule_with_warmup(optimizer, warmup, total),
        "cosine": lambda: get_cosine_schedule_with_warmup(optimizer, warmup, total),
        "constant": lambda: get_constant_schedule_with_warmup(optimizer, warmup),
    }[kind]()
    factors = []
    for _ in range(total + 1):
        factors.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return {"kind": kind, "warmup": warmup, "total": total, "factor": factors}


def adamw_case(seed, size, learning_rates, betas=(0.9, 0.999), epsilon=1e-8, weight_decay=0.0):
    generator = torch.Generator().manual_seed(seed)
    parameter = torch.nn.Parameter(torch.randn(size, generator=generator))
    optimizer = torch.optim.AdamW([parameter], lr=1.0, betas=betas, eps=epsilon, weight_decay=weight_decay)
    case = {"learning_rate": learning_rates, "betas": betas, "epsilon": epsilon, "weight_decay": weight_decay,
            "start": parameter.tolist(), "gradients": [], "parameters": []}
    for learning_rate in learning_rates:
        parameter.grad = torch.randn(size, generator=generator)
        parameter.grad[0] = 0.0  # a parameter without gradient: only weight decay moves it
        parameter.grad[1] *= 1e-9  # a gradient in the range of epsilon
        optimizer.param_groups[0]["lr"] = learning_rate
        optimizer.step()
        case["gradients"].append(parameter.grad.tolist())
        case["parameters"].append(parameter.tolist())
    return case


def clip_case(seed, sizes, scale, max_norm):
    generator = torch.Generator().manual_seed(seed)
    parameters = [torch.nn.Parameter(torch.zeros(size)) for size in sizes]
    for parameter in parameters:
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)
    before = [parameter.grad.tolist() for parameter in parameters]
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    after = [parameter.grad.tolist() for parameter in parameters]
    return {"max_norm": max_norm, "gradients": before, "norm": norm.item(), "clipped": after}


def optim():
    shapes = [("linear", 0, 5), ("linear", 4, 20), ("linear", 7, 7), ("cosine", 0, 6), ("cosine", 3, 17), ("constant", 4, 8)]
    return {
        "schedules": [schedule_case(*shape) for shape in shapes],
        "adamw": [
            adamw_case(1, 6, [1e-2] * 6),
            adamw_case(2, 6, [0.0, 5e-3, 1e-2, 7.5e-3, 5e-3], weight_decay=0.1),
            adamw_case(3, 5, [3e-4] * 4, betas=(0.8, 0.95), epsilon=1e-6, weight_decay=0.01),
        ],
        "clip": [clip_case(4, [3, 5], 1.0, 1.0), clip_case(5, [4, 2], 0.1, 1.0), clip_case(6, [2], 1e4, 0.5)],
    }


# ---- metrics.json ---------------------------------------------------------------------------------------------------------


def finite(value):
    return float(value) if np.isfinite(value) else None


def correlation_case(name, x, y):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # constant input: the result is NaN
        pearson, spearman = stats.pearsonr(x, y)[0], stats.spearmanr(x, y)[0]
    return {"name": name, "x": list(map(float, x)), "y": list(map(float, y)), "pearson": finite(pearson), "spearman": finite(spearman)}


def counts(scores, labels, threshold):
    predicted = scores >= threshold
    tn, fp, fn, tp = metrics.confusion_matrix(labels, predicted, labels=[0, 1]).ravel().tolist()
    return {
        "accuracy": metrics.accuracy_score(labels, predicted),
        "precision": metrics.precision_score(labels, predicted, zero_division=0),
        "recall": metrics.recall_score(labels, predicted, zero_division=0),
        "f1": metrics.f1_score(labels, predicted, zero_division=0),
        "confusion": {"tp": tp, "fp": fp, "tn": tn, "fn": fn},
    }


def best_thresholds(scores, labels):
    """The best accuracy and F1 over the midpoints between different scores, from the highest down."""
    values = np.unique(scores)[::-1]
    middles = (values[:-1] + values[1:]) / 2 if len(values) > 1 else values
    tried = [(float(t), counts(scores, labels, t)) for t in middles]
    accuracy = max(tried, key=lambda row: row[1]["accuracy"])
    f1 = max(tried, key=lambda row: row[1]["f1"])
    if len(values) == len(scores) and 0 < labels.sum() < len(labels):
        # sentence-transformers must agree where it is defined: without ties, and with a useful threshold
        their_accuracy = BinaryClassificationEvaluator.find_best_acc_and_threshold(scores, labels, True)
        their_f1 = BinaryClassificationEvaluator.find_best_f1_and_threshold(scores, labels, True)
        assert np.allclose(their_accuracy, (accuracy[1]["accuracy"], accuracy[0]), atol=1e-12), (their_accuracy, accuracy)
        ours = (f1[1]["f1"], f1[1]["precision"], f1[1]["recall"], f1[0])
        assert np.allclose(their_f1, ours, atol=1e-12), (their_f1, f1)
    return accuracy, f1


def binary_case(name, scores, labels):
    scores, labels = np.asarray(scores, float), np.asarray(labels, int)
    accuracy, f1 = best_thresholds(scores, labels)
    both = 0 < labels.sum() < len(labels)
    return {
        "name": name,
        "scores": scores.tolist(),
        "labels": labels.tolist(),
        "average_precision": metrics.average_precision_score(labels, scores) if both else None,
        "roc_auc": metrics.roc_auc_score(labels, scores) if both else None,
        "accuracy": accuracy[1]["accuracy"],
        "accuracy_threshold": accuracy[0],
        "f1_threshold": f1[0],
        **{key: f1[1][key] for key in ("f1", "precision", "recall", "confusion")},
    }


def sweep_case(name, scores, labels, steps):
    scores, labels = np.asarray(scores, float), np.asarray(labels, int)
    rows = []
    for threshold in np.linspace(scores.min(), scores.max(), steps):
        row = counts(scores, labels, threshold)
        rows.append({"threshold": float(threshold), **{k: row[k] for k in ("accuracy", "precision", "recall", "f1")}, **row["confusion"]})
    return {"name": name, "scores": scores.tolist(), "labels": labels.tolist(), "rows": rows}


def metric_values():
    random = np.random.default_rng(7)
    x = random.normal(size=60)
    noisy = np.round(x + random.normal(size=60), 6)
    x = np.round(x, 6)
    tied_x, tied_y = random.integers(-3, 4, 50) / 2, random.integers(0, 2, 50)
    labels = random.integers(0, 2, 80)
    scores = np.round(labels * 0.4 + random.normal(size=80) * 0.5, 6)
    tied = np.round(labels * 0.4 + random.normal(size=80) * 0.5, 1)
    cosine = np.float32(np.tanh(scores)).astype(float)
    return {
        "correlation": [
            correlation_case("random", x, noisy),
            correlation_case("ties and two classes", tied_x, tied_y),
            correlation_case("two rows", [1.0, 2.0], [5.0, -3.0]),
            correlation_case("three rows, one tie", [1.0, 1.0, 2.0], [0.0, 1.0, 1.0]),
            correlation_case("constant", [0.1, 0.1, 0.1], [1.0, 2.0, 3.0]),
            correlation_case("far from zero", x + 1e8, noisy),
            correlation_case("wide range", np.sign(x) * 10.0 ** (x * 60), noisy),
            correlation_case("signed zero", [0.0, -0.0, 1.0, -1.0], [1.0, 2.0, 4.0, -3.0]),
        ],
        "binary": [
            binary_case("random", scores, labels),
            binary_case("fp32 scores", cosine, labels),
            binary_case("ties", tied, labels),
            binary_case("separable", [0.9, 0.8, 0.2, 0.1], [1, 1, 0, 0]),
            binary_case("reversed", [0.1, 0.2, 0.3, 0.8, 0.9], [1, 1, 0, 0, 1]),
            binary_case("two rows", [0.75, 0.25], [1, 0]),
            binary_case("one row", [0.5], [1]),
            binary_case("all equal", [0.5, 0.5, 0.5], [1, 0, 0]),
            binary_case("ones only", [0.1, 0.7, 0.4], [1, 1, 1]),
            binary_case("zeros only", [0.1, 0.7, 0.4], [0, 0, 0]),
        ],
        "sweep": [sweep_case("random", scores, labels, 11), sweep_case("ties", tied, labels, 7)],
    }


def write_json(path, value):
    """One line per case, so that files are short and diffs readable."""
    with open(path, "w", encoding="utf-8") as file:
        groups = []
        for key, cases in value.items():
            groups.append(json.dumps(key) + ": [\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]")
        file.write("{\n" + ",\n".join(groups) + "\n}\n")


def main():
    root = sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.path.abspath(__file__))
    warnings.filterwarnings("ignore", "Detected call of .lr_scheduler.step")
    torch.set_num_threads(1)
    os.makedirs(root, exist_ok=True)
    write_json(os.path.join(root, "optim.json"), optim())
    write_json(os.path.join(root, "metrics.json"), metric_values())


if __name__ == "__main__":
    main()
