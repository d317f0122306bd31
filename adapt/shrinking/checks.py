"""Check before a search, training or save what would otherwise fail after hours; test which masks can be removed."""

import contextlib
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from das_gym.adapt.choosing import Choice
from das_gym.adapt.hardware import free_bytes
from das_gym.adapt.shrinking.recovery import trainable_parts, training_rows
from das_gym.adapt.shrinking.settings import REFIT, AnsweringSettings, RecoveryConfig
from das_gym.adapt.shrinking.verifying import Probes, check_generation, check_logits, has_remote_code

from das_gym.commands.progress import progress
from das_gym.data.images import ImageFile, ImageSource, decode_errors, file_pixels
from das_gym.engine.tree import bfloat16_hardware
from das_gym.models.base import tensor_bytes
from das_gym.models.macs import share_copy
from das_gym.models.transformers.layer_removal import check_reloads, counting_attentions, pruned_copy, remove_parts
from das_gym.models.transformers.loading import check_is_model, loaded_dtype
from das_gym.models.transformers.model import VLM
from das_gym.models.transformers.refitting import check_refit
from das_gym.models.transformers.stack import IMAGE, JOINT
from das_gym.models.transformers.units import MLP
from das_gym.problem.budget import Budget, measure_cost, pick_budget
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import pick_device, shuffled
from das_gym.problem.problem import Problem
from das_gym.registration import MODELS
from das_gym.tasks.base import Task

ENCODED_PROMPTS = 8
"""Number of prompts of each kind that are fully encoded: those with most words, pixels and images."""

FALLBACK_MASKS = 64
"""Number of a search's masks that are tried if its best one cannot be removed."""


def check_loaded(settings: AnsweringSettings, problem: Problem, choice: Choice | None) -> None:
    """Raise ValueError for settings or data that do not suit the model; without a choice, masks are searched."""
    check_recovery(settings.train, as_vlm(problem))
    check_verification_memory(as_vlm(problem))
    if choice is not None:
        choice.check_model(problem.backbone.base)
    if settings.metric is not None and not problem.task.generates:
        name = problem.task.name
        raise ValueError(
            f"`metric` scores generated answers, which {name} does not have: got {settings.metric}. Leave it out."
        )
    if settings.train.targets == "teacher" and not problem.task.generates:
        raise ValueError(f"`targets` is for answers, which {problem.task.name} does not have: got teacher. Leave it out.")
    if choice is None:
        _check_budget_leaves_a_layer(as_vlm(problem), make_budget(settings, problem, settings.budget))
    elif not as_vlm(problem).check_mask(choice.mask).any():
        raise ValueError(f"`search_run` skips nothing: got mask={choice.mask.astype(int).tolist()}. Give another.")
    check_examples(problem.task, shuffled(problem.task, problem.splits.test, settings.test_examples))
    train = problem.splits.train
    if settings.train.recover != "none" and len(train):
        check_examples(problem.task, [train[row] for row in training_rows(len(train), settings.train)])
    if choice is None:
        check_examples(problem.task, problem.splits.reward)


def check_examples(task: Task, examples: Sequence[Any]) -> None:
    """Reject examples that the model cannot read: all texts are tokenized, all images decoded.

    Image tokens are made for the longest prompts alone, since that takes long for thousands of examples.
    """
    processor: Any = task.processor
    prompts: list[tuple[str, Any]] = [(example.key, prompt) for example in examples for prompt in task.pairs([example])]
    images: dict[str, tuple[str, ImageSource]] = {}
    for key, prompt in prompts:
        for image in prompt.images:
            images.setdefault(image.key, (key, image))
    with contextlib.closing(decode_errors({name: image for name, (_, image) in images.items()})) as errors:
        for name, error in errors:
            raise type(error)(f"{images[name][0]}: {error}") from error
    pixels = {name: _pixels(image) for name, (_, image) in images.items()}

    def read(row: int, method: Callable[[Any], Any]) -> Any:
        key, prompt = prompts[row]
        try:
            return method(prompt)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from error

    lengths = []
    with progress(len(prompts), "checking texts", unit="text") as bar:
        for row, (_, prompt) in enumerate(prompts):
            size = sum(pixels[image.key] for image in prompt.images)
            lengths.append((read(row, processor.count_tokens), size, len(prompt.images)))
            bar.update()
    longest = np.argsort(lengths, axis=0)[-ENCODED_PROMPTS:].flatten().tolist()
    without = [row for row, (_, prompt) in enumerate(prompts) if not prompt.images]
    for row in sorted({*longest, *without[:1]}):  # some templates reject prompts without an image
        read(row, processor.encode)


def _pixels(image: ImageSource) -> int:
    if isinstance(image, ImageFile):
        return file_pixels(image.path)
    opened = image.open()
    return int(opened.width * opened.height)


def weights_folder(problem: ProblemConfig) -> Path:
    """Return the folder of the full model's weights; ValueError if `checkpoint` is needed."""
    if problem.checkpoint is not None:
        check_is_model(Path(problem.checkpoint))
        return Path(problem.checkpoint)
    folder = MODELS[problem.model].assets
    if folder is None or not (folder / "config.json").is_file():
        raise ValueError(f"no {problem.model} is bundled. Give `checkpoint`, the folder of a transformers model.")
    return folder


def processor_folder(problem: ProblemConfig) -> Path:
    """Return the folder of the processor or tokenizer: `tokenizer`, or that of the weights."""
    return weights_folder(problem) if problem.tokenizer is None else Path(problem.tokenizer)


def check_config(problem: ProblemConfig) -> None:
    """Check what can be checked without loading the model."""
    source = weights_folder(problem)
    if problem.supernet is not None:
        raise ValueError(f"`supernet` is not supported by shrink: got {problem.supernet}. Leave it out.")
    if problem.dtype in (None, "auto"):
        check_dtype(loaded_dtype(source), pick_device(problem.device), source)


def check_dtype(dtype: torch.dtype, device: torch.device, source: Path) -> None:
    """Reject a 16-bit dtype that this machine computes tens of times slower than float32."""
    slow = dtype == torch.float16 and device.type == "cpu"
    slow |= dtype == torch.bfloat16 and device.type in ("cpu", "cuda") and bfloat16_hardware(device) is None
    if slow:
        name = str(dtype).removeprefix("torch.")
        raise ValueError(
            f"the weights in {source} are {name}, for which this {device.type} has no instructions. Give dtype=float32 to "
            f"compute in float32 and save in {name} (see `save_dtype`), or dtype={name} to compute slowly."
        )


def check_recovery(recovery: RecoveryConfig, vlm: VLM) -> None:
    """Raise ValueError if layers of a model cannot be removed, or what is left cannot be recovered in this way."""
    if vlm.unit_kind != "layers":  # some types read settings of single layers in a way that forbids removed parts
        check_reloads(remove_parts(share_copy(vlm.model), {vlm.places[vlm.decoder_units - 1]: MLP}))
    if recovery.method is not None:
        recovery.method.check_recovery(vlm, trainable_parts(vlm))
    if recovery.closed_form == REFIT:
        check_refit(vlm)
    if recovery.adds_code and has_remote_code(vlm):
        raise ValueError(f"recover={recovery.recover} does not support a model with custom code. Use recover=lora.")


def check_verification_memory(vlm: VLM) -> None:
    """Reject a model that leaves no room for the process that loads the saved folder; see `verifying.off_gpu`.

    A model on one GPU waits in main memory meanwhile, through which the process loads its own.
    """
    needed = tensor_bytes(list(vlm.model.parameters()))
    free = free_bytes(vlm)
    place = "memory"
    if vlm.device.type != "cpu" and not vlm.is_spread:
        needed = 2 * needed
        free = psutil.virtual_memory().available
        place = "main memory"
    if needed > free:
        raise ValueError(
            f"a second process loads the saved folder to verify it, which takes up to {needed / 1e9:.1f} GB, and "
            f"{free / 1e9:.1f} GB of {place} are free. Make room, or use a smaller `dtype`."
        )


def _check_budget_leaves_a_layer(vlm: VLM, budget: Budget) -> None:
    """Reject a budget for which every layer of the decoder, or of the vision tower, would have to go.

    Of sublayers, an attention of the first layer's kind has to stay, see `modeling_removed_sublayers`.
    """
    stacks = {JOINT: vlm.stack} if vlm.tower is None else {JOINT: vlm.stack, IMAGE: vlm.tower.stack}
    needed = {stream: list(range(len(stack.layers))) for stream, stack in stacks.items()}
    if vlm.unit_kind != "layers":
        needed[JOINT] = counting_attentions(vlm.model)
    fully_skippable = []
    for stream, places in needed.items():
        units = zip(vlm.layers, vlm.places, strict=True)
        one_of = [n for n, (u, place) in enumerate(units) if u.stream == stream and u.kind != MLP and place in places]
        if len(one_of) == len(places):  # otherwise a protected layer always stays
            fully_skippable.append(one_of)
    kept = np.array(list(itertools.product(*fully_skippable)), dtype=int)  # one of each list, in every way
    left = "layer" if vlm.unit_kind == "layers" else "attention"
    largest = np.tile(budget.useful_layers, (len(kept), 1))
    np.put_along_axis(largest, kept, False, axis=1)
    if budget.skip_num is not None and budget.skip_num > (count := largest.sum(axis=1).max()):
        raise ValueError(f"`skip_num` must leave one {left}: got {budget.skip_num}, expected {count} or less.")
    if budget.cost is not None and not budget.is_feasible(largest).any():
        reach = math.floor(budget.cost.saved(largest).max() * 1e4) / 1e4
        raise ValueError(
            f"`{budget.cost.setting}` is out of reach if one {left} must stay: got {budget.saved}, expected {reach:.4f} or "
            "less."
        )


def fallback_if_not_removable(choice: Choice, problem: Problem) -> Choice:
    """Return the choice, or the best other mask of its search that can be removed; ValueError if none can."""
    reason = why_not_removable(problem, choice.mask)
    if not reason:
        return choice
    others = itertools.islice(filter(np.any, choice.others), FALLBACK_MASKS)
    fallback = next((mask for mask in others if not why_not_removable(problem, mask)), None)
    if fallback is None:
        raise ValueError(reason)
    remark = f"The search's best mask cannot be removed ({reason}). The best one that can is used instead."
    return replace(choice, mask=fallback, remark=f"{choice.remark}\n{remark}".strip())


def why_not_removable(problem: Problem, mask: np.ndarray) -> str:
    """Return why a model cannot generate correctly without the layers of a mask; empty if it can."""
    vlm = as_vlm(problem)
    try:
        smaller = pruned_copy(vlm, mask)
        deleting = VLM(vlm.model, vlm.unit_kind, vlm.capabilities)  # without the skip adapters of a search
        probes = Probes.from_examples(deleting, problem.task, problem.splits.test, count=1)
        check_generation(smaller, probes)
        if vlm.removed_parts(mask):
            check_logits(smaller, mask, probes)
    except ValueError as error:
        return str(error)
    return ""


def make_budget(settings: AnsweringSettings, problem: Problem, budget: Mapping[str, Any]) -> Budget:
    """Return a budget of the problem's model. Latency is that of `search.latency_batch` prompts at a time."""
    batch = int(settings.search.env_kwargs.get("latency_batch", 1))
    return pick_budget(len(problem.layer_names), budget, lambda setting: measure_cost(problem, setting, batch))


def as_vlm(problem: Problem) -> VLM:
    """Return the problem's model; TypeError if it is not of transformers."""
    if not isinstance(problem.vlp, VLM):
        raise TypeError(f"shrink needs a transformers model: got {type(problem.vlp).__name__}. Use `adapt`.")
    return problem.vlp
