"""What a method of fine-tuning is: what it inserts into a frozen model, what of it trains, and what is left in it after."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from das_gym.adapt.training import check_ranges
from torch import nn

from das_gym.config import add_entry, build, check_names
from das_gym.models.base import VLP, Site
from das_gym.models.macs import meta_twin
from das_gym.problem.adaptation import own_parameters
from das_gym.problem.loading import AdaptedModel
from das_gym.registration import find_class

METHODS: dict[str, str | type[Method]] = {
    name: f"das_gym.adapt.methods.{file}:{cls}"
    for name, file, cls in (
        ("full", "full", "Full"),
        ("head", "head", "Head"),
        ("bitfit", "bitfit", "BitFit"),
        ("lora", "lora", "LoRA"),
        ("prompt", "prompt", "Prompt"),
        ("adapter", "adapter", "AdapterTuning"),
        ("parallel", "parallel", "ScaledParallel"),
        ("das", "das", "DAS"),
    )
}
"""Name to class, or where it is: `module:class`."""


@dataclass(frozen=True)
class Method(ABC):
    """A way to fine-tune. Its fields are its settings, and check themselves.

    A head that the task brings trains always, and with `poolers` what the model trains under every mask. `insert` says what
    else does; nothing else of the model moves.

    Attributes:
        title: As it is called in tables.
        leaves: What of it stays in the model after `finish` and no exported folder can hold, in words; empty = nothing.
        poolers: Whether what trains under every mask does: poolers, token types and the like.
    """

    title: ClassVar[str]
    leaves: ClassVar[str] = ""

    poolers: bool = True

    @abstractmethod
    def insert(self, vlp: VLP) -> list[nn.Parameter]:
        """Take the adapters of `DAS` out of a model, unless it is that, and put in what it adds; what trains of it all.

        Raises:
            ValueError: the model cannot have it; says why.
        """

    def finish(self, vlp: VLP) -> None:  # noqa: B027 - most have nothing to do
        """Called when training has ended: leave nothing in the model that it can do without."""

    def apply(self, model: AdaptedModel, seed: int = 0) -> int:
        """Make a frozen model ready to be trained by this method, in place.

        Args:
            model: As it was loaded, with a head and no mask pruned.
            seed: Of what is inserted.

        Returns:
            How many parameters of the model this method updates: without head and poolers.

        Raises:
            ValueError: the model cannot have it, or nothing would train.
        """
        vlp = model.backbone.vlp
        vlp.requires_grad_(False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            trained = self.insert(vlp)
        shared = [p for p in vlp.shared_parameters() if self.poolers]
        head = list(own_parameters(vlp, model.head).values())
        for parameter in (*trained, *shared, *head):
            parameter.requires_grad_(True)
        self._check_trains(vlp, bool(trained or shared or head))
        apart = {id(p) for p in vlp.shared_parameters()}
        return sum(p.numel() for p in {id(p): p for p in trained if id(p) not in apart}.values())

    def check(self, vlp: VLP) -> None:
        """Refuse a model that cannot have it, and leave that as it is.

        Args:
            vlp: As it was loaded.

        Raises:
            ValueError: it cannot, or nothing would train.
        """
        twin = meta_twin(vlp)
        trained = self.insert(twin)
        self._check_trains(vlp, bool(trained or vlp.own_head() is None or (self.poolers and twin.shared_parameters())))

    def _check_trains(self, vlp: VLP, trains: bool) -> None:
        if not trains:
            raise ValueError(
                f"{self.title}: nothing would train, since a {type(vlp).__name__} brings its head; choose another method"
            )


def all_sites(vlp: VLP, *kinds: str) -> list[Site]:
    """The sub-layers of every skippable layer.

    Args:
        vlp: The model.
        *kinds: Only of these kinds; none named takes all.

    Raises:
        ValueError: what `VLP.sites` raises.
    """
    sites = [site for index in range(len(vlp.layers)) for site in vlp.sites(index)]
    return [site for site in sites if not kinds or site.kind in kinds]


def check_widths(method: Method, *names: str) -> None:
    """Refuse a width below 1.

    Raises:
        ValueError: names the setting.
    """
    check_ranges(method, **dict.fromkeys(names, (1, 2**20)))


def register_method(name: str, method: str | type[Method]) -> None:
    """Add a method of one's own, which `python -m adapt compare` then takes.

    Args:
        name: As which it is asked for.
        method: Its class, or that class's "module:class".

    Raises:
        TypeError: neither.
        ValueError: a name that is not allowed or taken.
    """
    is_path = isinstance(method, str) and all(method.partition(":"))
    if not (is_path or (isinstance(method, type) and issubclass(method, Method))):
        raise TypeError(f"register_method({name!r}, {method!r}): give a subclass of Method, or 'module:class'")
    add_entry(METHODS, name, method, "method")


def make_method(name: str, settings: Mapping[str, Any] | None = None) -> Method:
    """The method of that name.

    Args:
        name: A key of `METHODS`.
        settings: Its settings, where they are not the default.

    Raises:
        ValueError: no such method, or a setting that it refuses.
    """
    check_names([name], METHODS, "method", own=True)
    cls: Any = find_class(METHODS[name])
    if inspect.isabstract(cls):
        raise TypeError(f"method {name!r}: {cls.__name__} has no insert; write it")
    method: Method = build(cls, settings or {}, f"setting of method {name!r},")
    return method
