"""What benchmarks share: parsers, kept arrays, the machine and its memory, and the models that are measured.

The models are the bundled METER-mini, METER-base with random weights, and LLaVA-1.5 of any size.
"""

import argparse
import ctypes
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from das_gym.commands.runs import library_versions
from das_gym.data.images import NoiseImage
from das_gym.engine.tree import bfloat16_hardware
from das_gym.files import read_arrays, replacing
from das_gym.models.base import VLP, State
from das_gym.models.inputs import Processor, load_tokenizer
from das_gym.models.meter.inputs import meter_transform
from das_gym.models.meter.model import METER
from das_gym.problem.config import ProblemConfig
from das_gym.problem.problem import load_problem
from das_gym.registration import ASSETS
from das_gym.tasks.base import Task
from das_gym.tasks.vqa.files import VQAExample
from das_gym.tasks.vqa.task import VQATask

EXAMPLES = {"mini": 64, "base": 2}
"""Number of examples, evaluated in one batch, by model size."""

BASE_TEXT = 40
BASE_ANSWERS = 3129
"""METER-base on VQA 2.0: text tokens, and answers."""

DAS = ("text.1", "text.3", "image.1", "image.3")
"""Layers that DAS skips here: none of the last stage, in which only the first token is computed."""


@dataclass(frozen=True)
class Subject:
    """A model with its head, its task and some examples."""

    vlp: VLP
    head: nn.Module
    task: Task
    examples: Sequence[Any]

    def batch(self) -> dict[str, Tensor]:
        """Return the model's inputs for all examples."""
        return self.task.processor(self.task.pairs(self.examples))

    def logits(self, encoded: State, mask: np.ndarray) -> Tensor:
        """Run a plain forward after the encoders: nothing is shared, and the last stage computes every token."""
        state = self.vlp.embed(encoded)
        for stage in self.vlp.stages:
            new = {self.vlp.layers[i].stream: self.vlp.run_layer(i, state, bool(mask[i])) for i in stage}
            state = state.with_hidden({**state.hidden, **new})
        return self.head(self.task.group_features(self.vlp.pool(state)))


def load_subject(size: str, examples: int | None = None) -> Subject:
    """Load METER of a size on the CPU, with its first examples."""
    count = examples or EXAMPLES[size]
    if size == "mini":
        problem = load_problem(ProblemConfig(device="cpu"))
        return Subject(problem.vlp, problem.head, problem.task, problem.splits.reward[:count])
    torch.manual_seed(0)
    vlp = METER()
    vlp.freeze()
    tokenizer = load_tokenizer(ASSETS / "meter_mini")
    config = vlp.config
    processor = Processor(tokenizer, meter_transform, config.image_size, config.patch_size, max_text_length=BASE_TEXT)
    task = VQATask(processor, [str(answer) for answer in range(BASE_ANSWERS)])
    head = task.build_head(vlp.feature_size).eval().requires_grad_(False)
    return Subject(vlp, head, task, [make_base_example(number) for number in range(count)])


def make_base_example(number: int) -> VQAExample:
    """Make a question of more than `BASE_TEXT` tokens, which is truncated, on an image of noise."""
    question = f"{number} " + "what is left of the red circle " * 10
    image = NoiseImage(number, 384, 384)
    return VQAExample(number, number, image, question, "", "other", str(number), (str(number),) * 10)


def llava_config(decoder: Sequence[int], tower: Sequence[int], vocab_size: int, **settings: Any) -> Any:
    """Return the configuration of a model with the proportions of LLaVA-1.5, on images of 24 x 24 patches at 336 px.

    Args:
        decoder: Width, layers and attention heads of the Llama decoder.
        tower: Width, layers and attention heads of the CLIP tower.
        vocab_size: Number of tokens.
        settings: Others of `LlavaConfig`.
    """
    import transformers as t

    names = ("hidden_size", "num_hidden_layers", "num_attention_heads")
    seen = dict(zip(names, tower, strict=True))
    spoken = dict(zip(names, decoder, strict=True))
    return t.LlavaConfig(
        vision_config=t.CLIPVisionConfig(**seen, intermediate_size=4 * tower[0], image_size=336, patch_size=14),
        text_config=t.LlamaConfig(**spoken, intermediate_size=decoder[0] * 43 // 16, vocab_size=vocab_size),
        **settings,
    )


def make_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """Return the parser of `python -m benchmarks.<name>`, whose help is the module's docstring."""
    return argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def keep_arrays(path: Path | None, compute: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the arrays of a file, or compute and write them; without a path, compute them."""
    if path is not None and path.exists():
        return read_arrays(path)
    arrays = compute()
    if path is not None:
        with replacing(path) as part, part.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
    return arrays


def describe_machine() -> dict[str, Any]:
    """Return the processor, what it has for bfloat16, cores, threads, how busy it was before, and versions."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.processor() or platform.machine()
    return {
        "processor": processor,
        "bfloat16": bfloat16_hardware("cpu"),
        "simd": torch.backends.cpu.get_cpu_capability(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "versions": library_versions(),
    }


def memory_mib(field: str) -> float:
    """Return the MiB of this process now (`VmRSS`) or at most (`VmHWM`). Linux only.

    `resource.getrusage` would not do: its maximum is handed down from the process that started this one.
    """
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


def restart_peak() -> bool:
    """Give unused memory back and reset `VmHWM`; False where the system does not allow that."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True
