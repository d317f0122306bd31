"""The interface and the registry of training methods, for fine-tuning and for recovery after layers were deleted.

A method is a subclass of `Method` and an entry of `METHODS`. What it trained is kept as an adaptation file.
"""

import dataclasses
import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from das_gym.adapt.methods import METHODS
from torch import Tensor, nn

from das_gym.commands.settings import Range, Settings, build
from das_gym.models.base import VLP, Site
from das_gym.models.macs import meta_twin, without_content
from das_gym.models.random_states import kept_random_states
from das_gym.names import add_entry, check_names
from das_gym.problem.adaptation import Adaptation, MethodSettings, own_parameters
from das_gym.problem.loading import AdaptedModel, Backbone, model_for_adaptation
from das_gym.registration import find_class

Width = Annotated[int, Range(1, 2**20)]


@dataclass(frozen=True)
class PrunedModel:
    """A model from which layers were deleted, as recovery passes it to a method.

    Attributes:
        root: The module whose submodules `parts` names.
        parts: What recovery may train: the decoder layers and the projector, by name.
        insert_adapters: Inserts parallel and skip adapters of two widths, in the form that the saved folder's code has, and
            returns what trains.
    """

    vlp: VLP
    root: nn.Module
    parts: Mapping[str, nn.Module]
    insert_adapters: Callable[[int, int], list[nn.Parameter]]


@dataclass(frozen=True)
class Method(Settings, ABC):
    """A way to train. Its fields are its settings.

    A head that the task brings always trains. `insert` decides what else does.

    Attributes:
        title: Name in tables.
        remaining: Modules that stay in the model after `finish` and cannot be exported; empty = none.
        trains_weights: Whether it trains parameters of the model itself, not only those that it inserts.
        adds_code: Whether a folder of a recovered model needs das_gym's code to load.
        recovery_rate: Peak learning rate of recovery, see `das_gym.adapt.shrinking.settings.RATE_HIDDEN_SIZE`.
        poolers: Whether poolers, token types and other tunable parameters outside of layers train too.
    """

    title: ClassVar[str]
    remaining: ClassVar[str] = ""
    trains_weights: ClassVar[bool] = False
    adds_code: ClassVar[bool] = False
    recovery_rate: ClassVar[float] = 1e-3
    poolers: ClassVar[bool] = True

    @abstractmethod
    def insert(self, vlp: VLP) -> list[nn.Parameter]:
        """Insert the modules and return the parameters to train. All methods but `DAS` first remove the DAS adapters."""

    def insert_for_recovery(self, pruned: PrunedModel) -> list[nn.Parameter]:
        """Insert the method into a model with removed layers; by default, as `insert` does."""
        return self.insert(pruned.vlp)

    def check_recovery(self, vlp: VLP, parts: Mapping[str, nn.Module]) -> None:
        """Check that a model can be recovered by this method; it is not changed."""
        if self.remaining:
            raise ValueError(f"{self.title} cannot recover a model: {self.remaining} cannot be saved. Use recover=lora.")
        if not self.insert(meta_twin(vlp)):
            raise ValueError(f"{self.title} cannot recover a model: it trains only the head. Use recover=lora.")

    def merged_weights(self, vlp: VLP) -> list[nn.Parameter]:
        """Return the weights of a trained model that `finish` changes; by default none."""
        return []

    def finish(self, vlp: VLP) -> None:
        """Finish the training: merge what can be merged into the weights, also into those that other models share."""

    def apply(self, model: AdaptedModel, seed: int = 0) -> int:
        """Prepare a frozen model, as it was loaded, for training by this method, in place. `seed` draws inserted weights.

        Returns:
            Number of parameters of the model that this method updates, without head and poolers.
        """
        vlp = model.backbone.vlp
        vlp.requires_grad_(False)
        # What a method draws for its modules must not change the order of the training that follows.
        with kept_random_states(vlp):
            torch.manual_seed(seed)
            inserted = self.insert(vlp)
        shared = vlp.shared_parameters()
        trained = [*inserted, *(shared if self.poolers else ()), *own_parameters(vlp, model.head).values()]
        for parameter in trained:
            parameter.requires_grad_(True)
        self._check_trains(vlp, bool(trained))
        counted = {id(p): p.numel() for p in inserted}
        for parameter in shared:  # every method trains them: they do not distinguish methods
            counted.pop(id(parameter), None)
        return sum(counted.values())

    def check(self, vlp: VLP) -> None:
        """Check that a model supports the method; it is not changed."""
        twin = meta_twin(vlp)
        inserted = self.insert(twin)
        self._check_trains(vlp, bool(inserted or vlp.language_head() is None or (self.poolers and twin.shared_parameters())))

    def _check_trains(self, vlp: VLP, trains: bool) -> None:
        if not trains:
            raise ValueError(f"{self.title}: nothing would train, since a {type(vlp).__name__} has its own head. Use lora.")


def copy_parameters(model: nn.Module, parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """Replace parameters of a model, which another model may share, by copies, and return these."""
    copies = {id(p): nn.Parameter(p.detach().clone(), requires_grad=p.requires_grad) for p in parameters}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if id(parameter) in copies:
                module._parameters[name] = copies[id(parameter)]
    return list(copies.values())


def all_sites(vlp: VLP, *kinds: str) -> list[Site]:
    """Return the sub-layers of every skippable layer, of some kinds or of all."""
    sites = [site for index in range(len(vlp.layers)) for site in vlp.sites(index)]
    return [site for site in sites if not kinds or site.kind in kinds]


def register_method(name: str, method: str | type[Method]) -> None:
    """Register a custom method, a class or its "module:class", for `adapt compare` and `recover=` of `adapt shrink`.

    Raises:
        TypeError: `method` is neither.
        ValueError: a name that is not allowed or already registered.
    """
    is_path = isinstance(method, str) and all(method.partition(":"))
    if not (is_path or (isinstance(method, type) and issubclass(method, Method))):
        raise TypeError(f"`method` is not a method: got {method!r}, expected a subclass of Method, or 'module:class'.")
    add_entry(METHODS, name, method, "method")


def method_class(name: str) -> type[Method]:
    """Return the class of a method; TypeError if it does not implement `insert`."""
    check_names([name], METHODS, "method", own=True)
    cls: Any = find_class(METHODS[name])
    if inspect.isabstract(cls):
        raise TypeError(f"method {name!r}: {cls.__name__} does not implement `insert`.")
    return cls


def make_method(name: str, settings: Mapping[str, Any] | None = None) -> Method:
    """Return a method of `METHODS`, with the settings that differ from its defaults.

    Example:
        >>> make_method("lora", {"rank": 8}).rank
        8
    """
    return build(method_class(name), settings or {}, f"setting of method {name!r},")


def trained_parameters(model: AdaptedModel) -> dict[str, Tensor]:
    """Return the parameters of a model and its head that train, by name."""
    named = model.backbone.vlp.named_parameters()
    return {**{f"vlp.{n}": p for n, p in named if p.requires_grad}, **own_parameters(model.backbone.vlp, model.head)}


def to_adaptation(model: AdaptedModel, name: str, method: Method, **info: object) -> Adaptation:
    """Return what trained in a model, before `Method.finish`: for LoRA its two small matrices, not merged weights."""
    return Adaptation.from_parameters(
        trained_parameters(model),
        model.backbone.vlp,
        task=model.task.name,
        answers=model.task.labels,
        base=model.backbone.base,
        info=info,
        method=MethodSettings(name, json.loads(json.dumps(dataclasses.asdict(method), default=str))),
    )


def restore_adaptation(backbone: Backbone, adaptation: Adaptation, task: str, path: str | Path) -> AdaptedModel:
    """Return the model as `Method.finish` left it, with the saved parameters; ValueError for a file that does not fit.

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
        _prune(twin.backbone.vlp, adaptation)
    own = {name: p for name, p in trained_parameters(twin).items() if name.startswith("vlp.")}
    adaptation.check_fits({**own, **own_parameters(backbone.vlp, model.head)})
    method.apply(model)
    _prune(backbone.vlp, adaptation)
    mask = backbone.vlp.pruned_mask
    if (None if mask is None else tuple(mask.astype(int).tolist())) != adaptation.mask:
        raise ValueError(f"{path} is damaged: its mask is not that of its method, {saved.name}. Train it again.")
    adaptation.put(trained_parameters(model))
    copy_parameters(backbone.vlp, method.merged_weights(backbone.vlp))  # a kept model may share them, see `load_backbone`
    method.finish(backbone.vlp)
    return model


def _prune(vlp: VLP, adaptation: Adaptation) -> None:
    """Remove the layers of an adaptation's mask, unless its method has done so."""
    if adaptation.mask is not None and vlp.pruned_mask is None:
        vlp.prune(np.array(adaptation.mask, bool))
