"""LoRA (Hu et al., arXiv 2106.09685) by peft."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from das_gym.adapt.methods.base import Method, all_sites, check_widths
from torch import nn

from das_gym.models.base import VLP


@dataclass(frozen=True)
class LoRA(Method):
    """A low-rank update of the query and value projections of every attention in the skippable layers, merged at the end.

    At rank 4 METER-base has 0.29 M of it, as published (REFERENCE: LoRA 0.29 M; ViLT 0.15 M).

    Attributes:
        rank: Of the update, at least 1.
        alpha: What is learnt counts `alpha / rank` times.
    """

    title: ClassVar[str] = "LoRA"

    rank: int = 4
    alpha: int = 8

    def __post_init__(self) -> None:
        check_widths(self, "rank", "alpha")

    def insert(self, vlp: VLP) -> list[nn.Parameter]:
        """LoRA's layers around queries and values."""
        vlp.remove_adapters()
        wanted = {id(site.owner.get_submodule(name)) for site in all_sites(vlp) for name in site.projections}
        return inject_lora(
            vlp, [name for name, module in vlp.named_modules() if id(module) in wanted], self.rank, self.alpha
        )

    def finish(self, vlp: VLP) -> None:
        """Merge."""
        merge_lora(vlp)


def is_linear(module: nn.Module) -> bool:
    """Whether a module gives `x W' + b` and nothing else, as LoRA takes it: some routers are subclasses of `nn.Linear`."""
    if not isinstance(module, nn.Linear) or type(module) is nn.Linear:
        return isinstance(module, nn.Linear)
    given = torch.ones(1, module.in_features).to(module.weight)
    with torch.no_grad():
        try:
            found = module(given)
        except (RuntimeError, TypeError, ValueError):
            return False
        return isinstance(found, torch.Tensor) and torch.allclose(
            found, nn.functional.linear(given, module.weight, module.bias)
        )


def inject_lora(model: Any, names: Iterable[str], rank: int, alpha: int) -> list[nn.Parameter]:
    """Put LoRA around modules, given by name, with numbers of 32 bits at least; what trains is returned."""
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(names), lora_dropout=0.0)
    inject_adapter_in_model(config, model)
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    trained = [p for layer in layers for part in (layer.lora_A, layer.lora_B) for p in part.parameters()]
    for parameter in trained:
        if parameter.dtype in (torch.float16, torch.bfloat16):
            parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    return trained


def merge_lora(model: Any) -> None:
    """Add what LoRA learnt to weights of the model's own, and leave nothing else of it.

    Raises:
        FloatingPointError: it is not finite.
    """
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            base: Any = module.get_base_layer()
            base.weight = nn.Parameter(base.weight.detach().clone(), requires_grad=False)
            try:
                module.merge(safe_merge=True)
            except ValueError as error:
                raise FloatingPointError(f"what LoRA learnt at {name} is not finite: try a lower learning_rate") from error
            model.set_submodule(name, base)
    if hasattr(model, "peft_config"):
        del model.peft_config
