"""Adaptation files: the parameters that training adds to a frozen model.

A supernet (adapters of every layer, trained over random masks), a fine-tuned subnet (adapters of one mask) and the result
of any other fine-tuning method are such files: parameters and head as safetensors, the rest as its metadata.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from das_gym.commands.settings import build
from das_gym.models.base import VLP
from das_gym.models.tensor_files import check_finite, read_safetensors, write_tensors

FORMAT = "das_gym adaptation 1"


@dataclass(frozen=True)
class MethodSettings:
    """A method of fine-tuning, see `das_gym.adapt.methods`."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Adaptation:
    """Trained parameters for a frozen model.

    Attributes:
        tensors: `vlp.<name>` and `head.<name>` to tensor.
        task: Name of the task.
        answers: The answer vocabulary, in the order of the head's logits; empty if the task has none.
        base: `fingerprint` of the model it was trained on.
        mask: The mask it was trained for, 0 or 1 a layer; None for a supernet.
        info: How the parameters were trained, as plain JSON values.
        method: The method of fine-tuning; None if the model's own adapters were trained.
    """

    tensors: Mapping[str, Tensor]
    task: str
    answers: tuple[str, ...]
    base: str
    mask: tuple[int, ...] | None = None
    info: Mapping[str, Any] = field(default_factory=dict)
    method: MethodSettings | None = None

    def __post_init__(self) -> None:
        if not set(self.mask or ()) <= {0, 1}:
            raise ValueError(f"`mask` is not a skip mask: got {list(self.mask or ())}, expected only 0 (keep) and 1 (skip)")

    @classmethod
    def from_model(cls, vlp: VLP, head: nn.Module, **fields: Any) -> Adaptation:
        """Return the current parameters of a model and its head."""
        return cls.from_parameters(_tunable(vlp, head), vlp, **fields)

    @classmethod
    def from_parameters(cls, tensors: Mapping[str, Tensor], vlp: VLP, **fields: Any) -> Adaptation:
        """Return copies of some parameters of a model and its head."""
        mask = None if vlp.pruned_mask is None else tuple(vlp.pruned_mask.astype(int).tolist())
        detached = {name: t.detach().cpu().clone() for name, t in tensors.items()}
        return cls(tensors=detached, mask=mask, **fields)

    def save(self, path: str | Path) -> None:
        """Write the file atomically."""
        described = {
            "format": FORMAT,
            "task": self.task,
            "answers": list(self.answers),
            "base": self.base,
            "mask": self.mask,
            "info": dict(self.info),
            **({} if self.method is None else {"method": asdict(self.method)}),
        }
        write_tensors(Path(path), self.tensors, described)

    @classmethod
    def load(cls, path: str | Path) -> Adaptation:
        """Read a file that `save` wrote; raise ValueError for one that is damaged, or not an adaptation file."""
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no adaptation file at {path}. `das-adapt` or `das-adapt supernet` writes one.")
        file = read_safetensors(path)
        described = dict(file.config)
        tensors = file.tensors
        form = described.pop("format", None)
        if form != FORMAT:
            raise ValueError(f"{path} is not an adaptation file of das_gym (format {form!r}, not {FORMAT!r})")
        check_finite(((name, tensor.float()) for name, tensor in tensors.items()), path)
        try:
            return build(cls, {**described, "tensors": tensors})
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} is a damaged adaptation file ({error}); write it again") from error

    def apply(self, vlp: VLP, head: nn.Module, base: str) -> None:
        """Copy the parameters into a model with fingerprint `base`; if they are of a subnet, prune the model by its mask."""
        self.check_base(base)
        if self.method is not None:
            raise ValueError(f"the file is of the method {self.method.name}. Load it with das_gym.adapt.load_subnet.")
        if self.mask is not None:
            vlp.prune(np.array(self.mask, dtype=bool))
        self.put(_tunable(vlp, head))

    def check_base(self, base: str) -> None:
        """Raise a ValueError for a model with another fingerprint than the one it was trained on."""
        if base != self.base:
            raise ValueError(
                f"this adaptation was trained on a model with fingerprint {self.base}, the loaded one has {base}: "
                "use the checkpoint (and image size) it was trained on, or train it again"
            )

    def check_fits(self, wanted: Mapping[str, Tensor]) -> None:
        """Raise a ValueError for parameters of other names or shapes."""
        odd = sorted(wanted.keys() ^ self.tensors.keys())
        if odd:
            raise ValueError(f"{len(odd)} parameters are only in the adaptation or only in the model: {', '.join(odd[:5])}")
        for name, parameter in wanted.items():
            mine = tuple(self.tensors[name].shape)
            if mine != tuple(parameter.shape):
                raise ValueError(f"{name} has shape {mine} in the adaptation, {tuple(parameter.shape)} in the model")

    def put(self, wanted: Mapping[str, Tensor]) -> None:
        """Copy its parameters into those of a model and its head, which must fit."""
        self.check_fits(wanted)
        with torch.no_grad():
            for name, parameter in wanted.items():
                parameter.copy_(self.tensors[name])


def _tunable(vlp: VLP, head: nn.Module) -> dict[str, Tensor]:
    return {f"vlp.{name}": p for name, p in vlp.tunable_state().items()} | own_parameters(vlp, head)


def own_parameters(vlp: VLP, head: nn.Module) -> dict[str, nn.Parameter]:
    """Return `head.<name>` to the parameters of a head, without those that are the model's: a language model's own head."""
    models = {id(p) for p in vlp.parameters()}  # a language model's head may be tied to its embeddings
    return {f"head.{name}": p for name, p in head.named_parameters() if id(p) not in models}
