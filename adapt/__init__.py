"""Who trains: supernets, fine-tuning, the pipeline of the paper, pre-training of the bundled models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from das_gym.adapt.subnets import load_subnet, save

__all__ = ["load_subnet", "save"]


def __getattr__(name: str) -> Any:
    """Import what is asked for only then: torch is heavy."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    from das_gym.adapt import subnets

    return getattr(subnets, name)
