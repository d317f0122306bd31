"""LoRA (Hu et al., arXiv 2106.09685) by peft."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from das_gym.adapt.methods.base import Method, PrunedModel, Width, all_sites
from torch import nn

from das_gym.models.base import HALVES, VLP

MAMBA_TYPES = ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h")
"""Values of `model_type` of models with Mamba layers, as in peft."""

MAMBA_OUT = "out_proj"
"""Last linear layer of a Mamba layer. Mamba's kernel reads its weight by itself, so peft rejects LoRA around it."""


@dataclass(frozen=True)
class LoRA(Method):
    """Train a low-rank update of the query and value projections in the skippable layers, merged at the end.

    At rank 4 METER-base has 0.29 M parameters of it, as published; ViLT has 0.15 M. In recovery it updates every
    linear layer of decoder and projector.

    Attributes:
        rank: Rank of the update.
    """

    title: ClassVar[str] = "LoRA"

    rank: Width = 4

    def insert(self, vlp: VLP) -> list[nn.Parameter]:
        vlp.remove_adapters()
        wanted = {id(site.owner.get_submodule(name)) for site in all_sites(vlp) for name in site.projections}
        names = [name for name, module in vlp.named_modules() if id(module) in wanted]
        return inject_lora(vlp, names, self.rank)

    def insert_for_recovery(self, pruned: PrunedModel) -> list[nn.Parameter]:
        names = linear_names(pruned.parts)
        config: Any = pruned.root.config
        if config.model_type in MAMBA_TYPES:
            names = [name for name in names if not name.endswith(f".{MAMBA_OUT}")]
        return inject_lora(pruned.root, names, self.rank)

    def check_recovery(self, vlp: VLP, parts: Mapping[str, nn.Module]) -> None:
        if not linear_names(parts):
            raise ValueError("LoRA needs layers of the type `torch.nn.Linear`, and the decoder has none. Use recover=full.")

    def merged_weights(self, vlp: VLP) -> list[nn.Parameter]:
        from peft.tuners.lora import LoraLayer

        layers: list[Any] = [module for module in vlp.modules() if isinstance(module, LoraLayer)]
        return [layer.get_base_layer().weight for layer in layers]

    def finish(self, vlp: VLP) -> None:
        merge_lora(vlp)


def linear_names(parts: Mapping[str, nn.Module]) -> list[str]:
    """Return the full names of the linear layers in modules, given by name."""
    return [
        f"{part}.{name}".rstrip(".")
        for part, module in parts.items()
        for name, each in module.named_modules()
        if is_linear(each)
    ]


def is_linear(module: nn.Module) -> bool:
    """Return True if a module computes just `x W' + b`: some routers of experts are subclasses of `nn.Linear`."""
    if not isinstance(module, nn.Linear):
        return False
    if type(module) is nn.Linear:
        return True
    x = torch.ones(1, module.in_features).to(module.weight)
    with torch.no_grad():
        try:
            y = module(x)
        except (RuntimeError, TypeError, ValueError):
            return False
        return isinstance(y, torch.Tensor) and torch.allclose(y, nn.functional.linear(x, module.weight, module.bias))


def inject_lora(model: Any, names: Iterable[str], rank: int) -> list[nn.Parameter]:
    """Insert LoRA around modules, given by name, in float32 at least; return the parameters to train.

    The update counts twice (alpha = 2 rank): another factor is another learning rate.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(names), lora_dropout=0.0)
    inject_adapter_in_model(config, model)
    # peft gives them the dtype of the layer; 16 bits would lose training steps of 1e-4 of a weight.
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    trained = [p for layer in layers for part in (layer.lora_A, layer.lora_B) for p in part.parameters()]
    for parameter in trained:
        if parameter.dtype in HALVES:
            parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    return trained


def merge_lora(model: Any) -> None:
    """Add LoRA's updates to the weights, in place, and remove LoRA; FloatingPointError if one is not finite."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            # peft's own unloading expects a model that it has wrapped.
            base: Any = module.get_base_layer()
            try:
                module.merge(safe_merge=True)
            except ValueError as error:
                raise FloatingPointError(f"LoRA diverged: {name} is not finite. Try a lower learning_rate.") from error
            model.set_submodule(name, base)
    for module in model.modules():
        if hasattr(module, "peft_config"):
            del module.peft_config
