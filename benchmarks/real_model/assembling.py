"""Ship what was trained as one small file, and build the vision-language model from it and SmolLM2."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.real_model.fast_decoder import GROUPS, LORA_SCALE, projections
from benchmarks.real_model.vision_language import build_model, load_tokenizer, make_processor
from das_gym import ProblemConfig, load_problem
from das_gym.commands.progress import bars_on_terminals
from das_gym.intervals import mean_interval
from das_gym.problem.loading import shuffled

TOWER, CONNECTOR = "model.vision_model.", "model.connector."


def trained_tensors(parts: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return what the model needs of the trained parts, in bfloat16; heads that only training uses are left out.

    `lora.LAYER.PROJECTION.down` is (rank, in) and `.up` (out, rank).
    """
    tensors = {TOWER + name: tensor for name, tensor in parts["vision"].items()}
    tensors |= {CONNECTOR + name: tensor for name, tensor in parts["connector"].items()}
    layers = 1 + max(int(name.split(".")[1]) for name in parts["lora"])
    for layer in range(layers):
        for group, names in enumerate(GROUPS):
            for number, name in enumerate(names):
                for half in ("down", "up"):
                    tensors[f"lora.{layer}.{name}.{half}"] = parts["lora"][f"layers.{layer}.{group}.{half}.{number}"]
    return {name: tensor.detach().bfloat16().contiguous() for name, tensor in tensors.items()}


def write_weights(trained: Path, out: Path) -> None:
    """Write the file that is shipped from trained.pt of `training.train`."""
    save_file(trained_tensors(torch.load(trained, weights_only=True)), out, metadata={"format": "pt"})
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB")


def merge(model: Any, tensors: dict[str, Tensor]) -> None:
    """Set tower and connector of a model, and add the updates of low rank to its decoder."""
    whole = {name: tensor for name, tensor in tensors.items() if not name.startswith("lora.")}
    unexpected = model.load_state_dict(whole, strict=False).unexpected_keys
    if unexpected:
        raise ValueError(f"the weights have names that the model has not: {unexpected}")
    for index, layer in enumerate(model.model.text_model.layers):
        modules = projections(layer)
        for name in (name for names in GROUPS for name in names):
            down, up = (tensors[f"lora.{index}.{name}.{half}"].float() for half in ("down", "up"))
            modules[name].weight.data += LORA_SCALE * up @ down


def assemble(smollm2: Path, weights: Path, out: Path) -> None:
    """Write the vision-language model, float32, as a folder that `SmolVLMForConditionalGeneration.from_pretrained` reads."""
    tokenizer = load_tokenizer(smollm2)
    model = build_model(smollm2, tokenizer)
    merge(model, {name: tensor.float() for name, tensor in load_file(weights).items()})
    with bars_on_terminals():
        model.save_pretrained(out)
    make_processor(tokenizer).save_pretrained(out)
    print(f"assembled: {out}")


def evaluate(model: Path, count: int) -> None:
    """Print the exact match of a model's answers to the first questions of Shapes-VQA's test split, in all and by kind."""
    problem = load_problem(ProblemConfig(model="VLM", task="answering", checkpoint=str(model)))
    full = np.zeros((1, len(problem.layer_names)), dtype=bool)
    examples = shuffled(problem.task, problem.splits.test, count)
    right = problem.evaluator.evaluate_each(full, examples).metrics[0]
    kinds = np.array([example.kind for example in examples])
    for kind in np.unique(kinds):
        own = right[kinds == kind]
        print(f"{kind}: {100 * own.mean():.1f} % of {len(own)}")
    low, high = 100 * np.array(mean_interval(right))
    print(f"exact match: {100 * right.mean():.1f} % of {len(right)} questions, 95 % interval {low:.1f} to {high:.1f}")
