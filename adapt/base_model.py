"""The full model before fine-tuning, loaded once, and the subnets that are cut from it."""

from __future__ import annotations

import copy
import dataclasses
from functools import lru_cache
from typing import Any

import numpy as np
from das_gym.adapt.finetune import new_subnet

from das_gym.data.splits import Splits
from das_gym.models.macs import without_adapters
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import AdaptedModel, find_supernet, load_problem, load_splits


def load_base_model(config: ProblemConfig) -> tuple[AdaptedModel, Splits[Any]]:
    """Return the full model before fine-tuning, and its data.

    It is the model of `load_problem`, with the supernet's parameters. Without a supernet it has new adapters and the model's
    own head. It comes from a process-wide cache. Do not train it: `cut` makes copies.
    """
    if find_supernet(config) is None:
        return _new_model(config)
    problem = load_problem(config)
    return AdaptedModel(problem.backbone, problem.head, problem.task), problem.splits


@lru_cache(maxsize=1)
def _new_model(config: ProblemConfig) -> tuple[AdaptedModel, Splits[Any]]:
    splits = load_splits(config)
    return new_subnet(config, splits), splits


def cut(base: AdaptedModel, mask: np.ndarray, adapters: bool = True) -> AdaptedModel:
    """Return a copy of a model without the layers of a mask, ready to be fine-tuned. Frozen weights are shared.

    Args:
        base: The full model.
        mask: (n_layers,) bool, True = skipped.
        adapters: Whether kept layers have their parallel adapters.
    """
    subnet = copy_model(base)
    if base.backbone.vlp.own_head() is None:
        subnet.head.train().requires_grad_(True)  # `load_problem` freezes it
    subnet.backbone.vlp.prune(mask)
    if not adapters:
        without_adapters(subnet.backbone.vlp)
    return subnet


def cut_subnet(problem: ProblemConfig, mask: np.ndarray, adapters: bool = True) -> AdaptedModel:
    """Return a new subnet of a mask, ready to be fine-tuned: `cut` of the model of `load_base_model`."""
    return cut(load_base_model(problem)[0], mask, adapters)


def copy_model(model: AdaptedModel) -> AdaptedModel:
    """Return a copy of a model that can be trained; frozen weights, which no training changes, are shared."""
    vlp = model.backbone.vlp
    shared: dict[int, Any] = {id(parameter): parameter for parameter in vlp.parameters() if not parameter.requires_grad}
    copied, head = copy.deepcopy((vlp, model.head), shared)
    return AdaptedModel(dataclasses.replace(model.backbone, vlp=copied), head, model.task)
