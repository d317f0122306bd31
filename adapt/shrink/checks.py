"""What is refused before anything is searched, trained or written."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from das_gym.adapt.adapt_experiment import Choice
from das_gym.adapt.memory import free_bytes
from das_gym.adapt.shrink.examples import check_examples
from das_gym.adapt.shrink.recovery import lora_places, rows_used
from das_gym.adapt.shrink.saving import check_out
from das_gym.adapt.shrink.settings import ShrinkSettings, is_saved, place_of
from das_gym.adapt.shrink.verifying import check_generates, is_remote, questions

from das_gym.commandline import typed
from das_gym.engine.precision import bfloat16_hardware
from das_gym.models.base import bytes_of
from das_gym.models.transformers.cutting import check_shared, check_units, cut
from das_gym.models.transformers.model import IMAGE, JOINT, VLM
from das_gym.models.transformers.weights import loaded_dtype, weight_files
from das_gym.problem.budget import Budget, pick_budget
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import Problem, check_problem, load_problem, pick_device, shuffled
from das_gym.problem.mask_cost import SAVED, measure_cost
from das_gym.registration import MODELS
from das_gym.runs import find_run

TRIED = 64
"""Masks of a search that are tried, the best first, where the very best cannot be deleted."""


def source_of(problem: ProblemConfig) -> Path:
    """The folder of the weights.

    Raises:
        ValueError: none is given and none is bundled.
        FileNotFoundError: it is none of transformers.
    """
    if problem.checkpoint is not None:
        if not (Path(problem.checkpoint) / "config.json").is_file():
            raise FileNotFoundError(f"{problem.checkpoint} holds no config.json: pass the folder of a model of transformers")
        return Path(problem.checkpoint)
    folder = MODELS[problem.model].assets
    if folder is None or not (folder / "config.json").is_file():
        raise ValueError(f"no {problem.model} is bundled here: pass checkpoint=<the folder of a model of transformers>")
    return folder


def check(settings: ShrinkSettings) -> None:
    """Refuse whatever can be told before a search or a run begins; the model is loaded, and stays so.

    Raises:
        ValueError, FileNotFoundError: the reason.
    """
    if settings.resume is not None and is_saved(settings, find_run(settings.runs_dir, settings.resume)):
        return
    choice = settings.choice()
    problem = settings.problem() if choice is None else choice.problem
    check_place(settings, problem)
    loaded = load_problem(problem)
    check_loaded(settings, loaded, None if choice is None else choice.mask)
    if choice is not None:
        deletable(choice, loaded, asked_budget(settings, loaded))
    test = shuffled(loaded.task, loaded.splits.test, settings.test_examples)
    check_examples(loaded.task, test)
    train = loaded.splits.train
    if settings.recover != "none" and len(train):
        check_examples(loaded.task, [train[row] for row in sorted(rows_used(len(train), settings.recovery()))])
    if choice is None or settings.refine > 1:
        check_examples(loaded.task, loaded.splits.reward)


def check_place(settings: ShrinkSettings, problem: ProblemConfig) -> None:
    """What can be told without loading the model: where it goes, room on the disk, whether this machine has its type.

    Raises:
        ValueError: the reason.
    """
    source = source_of(problem)
    room = sum(path.stat().st_size for path in weight_files(source))
    check_out(place_of(settings, Path(settings.runs_dir) / "new"), source, room)
    check_units(problem.units)
    if problem.supernet is not None:
        raise ValueError(
            f"supernet={problem.supernet}: nothing stands in a deleted layer's place but what recovery learns; leave "
            f"supernet out, in the search too, or keep its adapters with `{typed('adapt')}`"
        )
    if problem.device_map is not None:
        raise ValueError(
            f"device_map={problem.device_map}: a model is shrunk on one device; leave device_map out, or pass device="
        )
    check_problem(problem)
    if problem.dtype in (None, "auto"):
        check_dtype(loaded_dtype(source), pick_device(problem.device), source)


def check_dtype(dtype: torch.dtype, device: torch.device, source: Path) -> None:
    """Refuse weights of a type for which this machine has no instructions; `dtype=` computes in another one.

    Raises:
        ValueError: it has none.
    """
    lacks = device.type == "cpu" and (
        dtype == torch.float16 or (dtype == torch.bfloat16 and bfloat16_hardware(device) is None)
    )
    if lacks or (dtype == torch.bfloat16 and device.type == "cuda" and bfloat16_hardware(device) is None):
        name = str(dtype).removeprefix("torch.")
        raise ValueError(
            f"the weights in {source} are {name}, for which this {device.type} has no instructions: pass dtype=float32 to "
            f"compute in that (the new folder is saved in {name} all the same), or dtype={name} to compute in it slowly"
        )


def check_loaded(settings: ShrinkSettings, problem: Problem, mask: np.ndarray | None) -> None:
    """What needs the model: shared weights, nothing that recovery could train, a budget or a mask that it does not allow.

    Raises:
        ValueError: the reason.
    """
    vlm = as_vlm(problem)
    check_shared(vlm.model, vlm.tower is not None)
    check_memory(vlm)
    if settings.recover == "adapters" and vlm.untrainable:
        raise ValueError(f"{vlm.untrainable}: use recover=lora or recover=full")
    if settings.recover == "adapters" and is_remote(vlm):
        raise ValueError(
            "the model's class came with its folder, and adapters go into those of transformers: use recover=lora"
        )
    if settings.recover == "lora":
        lora_places(vlm)
    if mask is None:
        check_reach(vlm, bound(settings, problem, settings.budget))
        return
    if not vlm.check_mask(mask).any():
        raise ValueError("the mask skips nothing: there is nothing to delete; give one with a 1, or macs_saved=")
    budget = asked_budget(settings, problem)
    if not budget.is_kept_by(mask[None])[0]:
        cost = measure_cost(problem, "macs_saved") if budget.cost is None else budget.cost
        raise ValueError(
            f"the mask skips {mask.sum()} layers, {100 * cost.saved(mask[None])[0]:.1f} % of the {SAVED[cost.setting]}, and "
            f"not {budget.describe()}: leave {next(iter(settings.asked))} out, or the mask"
        )


def check_reach(vlm: VLM, budget: Budget) -> None:
    """Refuse a budget that only masks keep which leave no layer of the decoder, or none of the vision tower.

    Raises:
        ValueError: how far it may go.
    """
    stacks = {JOINT: vlm.stack} if vlm.tower is None else {JOINT: vlm.stack, IMAGE: vlm.tower.stack}
    units = {name: [n for n, unit in enumerate(vlm.layers) if unit.stream == name] for name in stacks}
    whole = [units[name] for name, stack in stacks.items() if len(units[name]) == len(stack.layers)]
    stay = np.array(list(itertools.product(*whole)), dtype=int)
    most = np.tile(budget.useful_layers, (len(stay), 1))
    np.put_along_axis(most, stay, False, axis=1)
    if budget.skip_num is not None and budget.skip_num > (count := most.sum(axis=1).max()):
        raise ValueError(f"skip_num={budget.skip_num}: one layer has to stay; use {count} or less")
    if budget.cost is not None and not budget.is_kept_by(most).any():
        reach = math.floor(budget.cost.saved(most).max() * 1e4) / 1e4
        raise ValueError(
            f"{budget.cost.setting}={budget.saved} is out of reach where one layer has to stay: the most saved then is "
            f"{reach:.4f} ({100 * reach:.2f} %); ask for that or less"
        )


def deletable(choice: Choice, problem: Problem, budget: Budget) -> Choice:
    """The choice, or the best other mask that its search saw where its own cannot be deleted; its remark says so.

    Args:
        choice: A search's, or a person's own, which has no others.
        problem: What it is for.
        budget: What is asked for: another mask has to keep it, too.

    Raises:
        ValueError: why its own cannot be, and no other of the first `TRIED` can either.
    """
    try:
        check_answers(problem, choice.mask)
    except ValueError as error:
        allowed = (mask for mask in choice.others if mask.any() and budget.is_kept_by(mask[None])[0])
        fitting = (mask for mask in itertools.islice(allowed, TRIED) if answers(problem, mask))
        if (mask := next(fitting, None)) is None:
            raise
        instead = f"the search's best mask cannot be deleted ({error}): the best that it saw of those that can is taken"
        return replace(choice, mask=mask, remark=f"{choice.remark}\n{instead}".strip())
    return choice


def answers(problem: Problem, mask: np.ndarray) -> bool:
    """Whether `check_answers` lets a mask pass."""
    try:
        check_answers(problem, mask)
    except ValueError:
        return False
    return True


_REFUSED: WeakKeyDictionary[VLM, dict[bytes, str]] = WeakKeyDictionary()
"""Of a model, which masks were tried, and why they were refused; empty where they were not."""


def check_answers(problem: Problem, mask: np.ndarray) -> None:
    """Refuse a mask without whose layers the model does not generate as it should; a mask is tried once.

    Raises:
        ValueError: the reason.
    """
    vlm = as_vlm(problem)
    known, key = _REFUSED.setdefault(vlm, {}), np.asarray(mask, bool).tobytes()
    if key not in known:
        try:
            check_generates(cut(vlm, mask), questions(vlm, problem.task, problem.splits.test, count=1))
        except ValueError as error:
            known[key] = str(error)
            raise
        known[key] = ""
    if known[key]:
        raise ValueError(known[key])


def check_memory(vlm: VLM) -> None:
    """Refuse a model beside which there is no room for the smaller one, which a process of its own loads to check it.

    Raises:
        ValueError: how much is needed and how much is free.
    """
    needed, free = bytes_of(list(vlm.model.parameters())), free_bytes(vlm.device)
    if needed > free:
        raise ValueError(
            "the saved folder is loaded once more, in a process of its own, to check it: that takes up to "
            f"{needed / 1e9:.1f} GB beside this one, and {free / 1e9:.1f} GB of memory are free: make room, or use a "
            "smaller dtype"
        )


def asked_budget(settings: ShrinkSettings, problem: Problem) -> Budget:
    """What a mask has to keep: the budget that was asked for, else none."""
    return bound(settings, problem, settings.asked or {"skip_num": None})


def bound(settings: ShrinkSettings, problem: Problem, budget: Mapping[str, Any]) -> Budget:
    """A budget of the problem's model; latency is that of `search.latency_batch` prompts at a time, one unless it is told.

    Raises:
        ValueError: no mask can keep it.
    """
    batch = settings.search.get("latency_batch", 1)
    return pick_budget(len(problem.layer_names), budget, lambda setting: measure_cost(problem, setting, batch))


def as_vlm(problem: Problem) -> VLM:
    """Its model.

    Raises:
        TypeError: another family's.
    """
    if not isinstance(problem.vlp, VLM):
        raise TypeError(f"shrink needs a model of transformers, not a {type(problem.vlp).__name__}")
    return problem.vlp
