"""Find the layers inside a model of transformers, and replace parts of it temporarily."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

JOINT, IMAGE = "joint", "image"
"""Streams: what decoder layers update, and what vision layers update."""

ATTENTION_NAMES = ("self_attn", "cross_attn", "attn", "attention", "self_attention")
MLP_NAMES = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe")
PART_NAMES = {"attention": ATTENTION_NAMES, "mlp": MLP_NAMES}
"""Names of the halves of a layer, by kind of unit."""

LIST_NAMES = ("layers", "h", "blocks", "layer")


@dataclass(frozen=True)
class Stack:
    """The layers of a decoder, or of a vision tower.

    Attributes:
        owner: The module that runs them.
        name: The name of their list in it.
        norm: The norm after a decoder's layers; not looked for in a vision tower.
    """

    owner: nn.Module
    name: str
    norm: nn.Module

    @property
    def layers(self) -> nn.ModuleList:
        """The layers, in order."""
        layers: nn.ModuleList = getattr(self.owner, self.name)
        return layers


def find_decoder(model: nn.Module) -> Stack:
    """Find the decoder layers of a model of transformers, and the norm after them; ValueError if there are none."""
    name = type(model).__name__
    if getattr(model.config, "is_encoder_decoder", False):
        raise ValueError(f"{name} is an encoder-decoder model, which is not supported. Use a decoder-only model.")
    decoder: Any = model.get_decoder()  # type: ignore[operator]
    for _ in range(3):  # some wrap their language model, head included: BLIP-2's OPT
        list_name = next((n for n in LIST_NAMES if isinstance(getattr(decoder, n, None), nn.ModuleList)), None)
        if list_name is not None:
            break
        decoder = next((inner for n in ("model", "decoder") if (inner := getattr(decoder, n, None)) is not None), None)
    else:
        raise ValueError(f"{name} is not supported: its decoder has no list of layers named {', '.join(LIST_NAMES)}.")
    parts = dict(decoder.named_children())
    at = list(parts).index(list_name)
    after_list = [*list(parts.values())[at + 1 :], *list(parts.values())[:at]]
    norm = next((part for part in after_list if "norm" in type(part).__name__.lower()), None)
    if norm is None:
        raise ValueError(f"{name} is not supported: its decoder has no norm next to its list of layers.")
    return Stack(decoder, list_name, norm)


def find_vision_tower(model: Any) -> Stack:
    """Find the layers of a model's vision tower; several lists of layers, or none, are a ValueError."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    tower = model.get_encoder(modality="image")
    decoder = find_decoder(model).owner
    has_tower = tower is not model and tower is not model.base_model and decoder not in set(tower.modules())
    found = []
    for owner in tower.modules() if has_tower else ():
        for name, layers in owner.named_children():
            is_list = isinstance(layers, nn.ModuleList) and len(layers) > 0
            if is_list and all(isinstance(layer, GradientCheckpointingLayer) for layer in layers):
                found.append(Stack(owner, name, nn.Identity()))
    if len(found) != 1:
        raise ValueError(f"{type(model).__name__} has {len(found)} lists of vision layers, expected 1. Leave out `vision`.")
    return found[0]


def path_of(model: nn.Module, module: nn.Module) -> str:
    """Return the dotted name of a module within a model."""
    return next(name for name, other in model.named_modules() if other is module)


def child_name(layer: nn.Module, names: Sequence[str]) -> str | None:
    """Return the first of the names under which the layer has a child."""
    children = dict(layer.named_children())
    return next((name for name in names if name in children), None)


def child(layer: nn.Module, names: Sequence[str]) -> nn.Module | None:
    """Return the child that the layer has under the first of the names that it knows."""
    name = child_name(layer, names)
    return None if name is None else getattr(layer, name)


@contextmanager
def replace_forwards(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Replace the forward functions of modules within the block. Their hooks stay."""
    # On the object and not its class, so that copies and other layers of the class are as before. A forward may be replaced
    # already: by accelerate for `device_map`, or by an outer block.
    before = {module: module.__dict__.get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            module.forward = forward
        yield
    finally:
        for module, own in before.items():
            del module.forward
            if own is not None:
                module.forward = own


def note_layer_parts(stack: Stack, run: Callable[[], Any]) -> None:
    """Run the model once, and note on each layer and its parts how many outputs it returns; 0 = a tensor alone.

    On each layer also the norms that serve attention or MLP alone. They are found by what reads what, since names mislead:
    `post_attention_layernorm` is before the MLP in Llama, and after the attention in Gemma.
    """
    calls: dict[Any, tuple[Any, Any]] = {}

    def note(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        module._das_outputs = len(output) if isinstance(output, tuple) else 0
        calls[module] = first_input(args, kwargs), first_output(output)

    def note_norms(layer: Any, *_: Any) -> None:
        called = {name: calls[part] for name, part in layer.named_children() if part in calls}
        layer._das_norms = {kind: _own_norms(layer, called, kind) for kind in PART_NAMES}
        calls.clear()

    parts = [part for layer in stack.layers for part in (*layer.children(), layer)]
    handles = [part.register_forward_hook(note, with_kwargs=True) for part in parts]
    handles += [layer.register_forward_hook(note_norms) for layer in stack.layers]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()


def _own_norms(layer: nn.Module, calls: Mapping[str, tuple[Any, Any]], kind: str) -> list[str]:
    """Return the norms before a layer's attention or MLP that nothing else reads, and those after it that keep zeros."""
    part = child_name(layer, PART_NAMES[kind]) or ""

    def serves_it(name: str, read: Any, given: Any) -> bool:
        if [other for other, (value, _) in calls.items() if value is given] == [part]:
            return True
        if part not in calls or read is not calls[part][1]:
            return False
        module: Any = getattr(layer, name)
        zeros = torch.zeros_like(read, dtype=next(module.parameters(), read).dtype)  # `forward` runs no hooks of float32
        return not module.forward(zeros).any()  # with a bias, it turns zeros into something else: it stays

    return [name for name, call in calls.items() if serves_it(name, *call)]


def as_layer_output(module: nn.Module, hidden: Tensor) -> Any:
    """Return hidden states in the form of the module's output, see `note_layer_parts`."""
    outputs = int(getattr(module, "_das_outputs", 0))
    return (hidden, *[None] * (outputs - 1)) if outputs else hidden


def first_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """Return the (..., hidden_size) hidden states among the arguments of a layer, attention or MLP."""
    return args[0] if args else kwargs.get("hidden_states", next(iter(kwargs.values()), None))


def first_output(output: Any) -> Tensor:
    """Return the (..., hidden_size) hidden states among the outputs of a layer, attention or MLP."""
    return output[0] if isinstance(output, tuple) else output


def zero_forward(module: nn.Module) -> Callable[..., Any]:
    """Return a forward for an attention or MLP that gives zeros: the residual connection then passes its input on."""
    return lambda *args, **kwargs: as_layer_output(module, torch.zeros_like(first_input(args, kwargs)))


def skip_forward(layer: nn.Module, instead: Callable[[Tensor], Tensor] = lambda hidden: hidden) -> Callable[..., Any]:
    """Return a forward that skips a layer, or computes something `instead`, such as a skip adapter."""
    return lambda *args, **kwargs: as_layer_output(layer, instead(first_input(args, kwargs)))
