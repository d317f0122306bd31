"""Save what a method of fine-tuning trained as an adaptation file, and restore it into the frozen model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from das_gym.adapt.methods.base import Method, make_method, own_copies
from torch import Tensor

from das_gym.models.macs import meta_twin, without_content
from das_gym.problem.adaptation import Adaptation, MethodSettings, own_parameters
from das_gym.problem.loading import AdaptedModel, Backbone, model_for_adaptation


def trained_parameters(model: AdaptedModel) -> dict[str, Tensor]:
    """Return the parameters of a model and its head that train, by name."""
    named = model.backbone.vlp.named_parameters()
    return {**{f"vlp.{n}": p for n, p in named if p.requires_grad}, **own_parameters(model.backbone.vlp, model.head)}


def to_adaptation(model: AdaptedModel, name: str, method: Method, **info: object) -> Adaptation:
    """Return what trained in a model, before `Method.finish`: for LoRA its two small matrices, not merged weights."""
    return Adaptation.holding(
        trained_parameters(model),
        model.backbone.vlp,
        task=model.task.name,
        answers=model.task.labels,
        base=model.backbone.base,
        info=info,
        method=MethodSettings(name, json.loads(json.dumps(dataclasses.asdict(method), default=str))),
    )


def restore_adaptation(backbone: Backbone, adaptation: Adaptation, task: str, path: str | Path) -> AdaptedModel:
    """Return the model as `Method.finish` left it, with the saved parameters.

    The method is applied to a copy without content first, so that a file cannot allocate more memory than it holds itself.
    """
    saved = adaptation.method
    if saved is None:
        raise ValueError(f"{path} names no method of fine-tuning.")
    model = model_for_adaptation(backbone, adaptation, task, path)
    adaptation.check_base(backbone.base)
    try:
        method = make_method(saved.name, saved.settings)
    except TypeError as error:
        raise ValueError(f"{path}: {error}") from error
    with without_content():
        twin = dataclasses.replace(model, backbone=dataclasses.replace(backbone, vlp=meta_twin(backbone.vlp)))
        method.apply(twin)
    own = {name: p for name, p in trained_parameters(twin).items() if name.startswith("vlp.")}
    adaptation.check_fits({**own, **own_parameters(backbone.vlp, model.head)})
    method.apply(model)
    mask = backbone.vlp.pruned_mask
    if (None if mask is None else tuple(mask.astype(int).tolist())) != adaptation.mask:
        raise ValueError(f"{path} is damaged: its mask is not that of its method, {saved.name}. Train it again.")
    adaptation.put(trained_parameters(model))
    own_copies(backbone.vlp, method.merged_weights(backbone.vlp))  # a kept model may share them, see `load_backbone`
    method.finish(backbone.vlp)
    return model
