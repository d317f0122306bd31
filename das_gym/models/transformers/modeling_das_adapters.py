"""A model of transformers some of whose decoder layers are replaced by adapters.

    AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)

loads it from a folder that holds this file and those that it imports, with torch and transformers alone. With linear maps, a
removed layer becomes `h + W rms_norm(h) + b`, a removed attention or MLP `W x + b` of its input `x`. In the other form,
that of "Parameter and Computation Efficient Transfer Learning for Vision-Language Pre-trained Models" (arXiv 2309.01479) for
LLaVA, a kept layer's attention and MLP read `x + A(x)` instead of their normed input `x`, and a removed layer becomes `h +
A(norm(h))`, with `A(x) = up(relu(down(x)))`.
"""

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from das_gym.models.adapters import Adapter, LinearMap, LinearSkipAdapter
from das_gym.models.transformers.modeling_removed_sublayers import renumber_cache_slots


class SkippedLayer(nn.Module):
    """Replaces a skipped layer: `h + A(norm(h))`, with a copy of the norm before its attention, or one of that shape."""

    def __init__(self, norm: nn.Module, adapter: Adapter) -> None:
        super().__init__()
        self.norm = copy.deepcopy(norm)
        self.adapter = adapter

    def forward(self, hidden: Tensor) -> Tensor:
        """Return hidden states of the same shape, (..., hidden_size)."""
        # a `device_map` may have put the layer before on another device: norm and adapter move what they read
        return hidden + self.adapter(self.norm(hidden)).to(hidden.device)


def add_adapters(model: Any, das: Mapping[str, Any]) -> Any:
    """Insert adapters into a model that has only its kept layers, and return it.

    Args:
        model: A model of transformers.
        das: `layers`: the name of its list of decoder layers; `removed_before`: number of layers removed before each kept
            one, and, as the last entry, after all of them; `hidden_size`: the model's width. With linear maps `form` is
            `linear`, `rank` that of the maps or None, `shared` whether one replaces all layers that are removed before a
            kept one, and `replace_modules` reads the rest. Otherwise `norm`, `attention`,
            `mlp` are what a layer calls its parts, and `bottleneck`, `skip_bottleneck` the widths of adapters.
    """
    layers = model.get_submodule(das["layers"])

    def adapter(bottleneck: int) -> Adapter:
        return Adapter(das["hidden_size"], bottleneck, norm=False, init="xavier_zero")

    is_linear = das.get("form") == "linear"

    def replacement(layer: nn.Module) -> nn.Module:
        if is_linear:
            return LinearSkipAdapter(das["hidden_size"], das["hidden_size"], das["rank"])
        return SkippedLayer(getattr(layer, das["norm"]), adapter(das["skip_bottleneck"]))

    def skipped(layer: nn.Module, count: int) -> nn.Sequential:
        units = [replacement(layer) for _ in range(min(count, 1) if das.get("shared") else count)]
        return nn.Sequential(*units).to(next(layer.parameters()))

    *before, last = das["removed_before"]
    after = [0] * (len(layers) - 1) + [last]
    for layer, count, count_after in zip(layers, before, after, strict=True):
        for name in () if is_linear else (das["attention"], das["mlp"]):
            put_before(getattr(layer, name), adapter(das["bottleneck"]).to(next(layer.parameters())))
        if count or count_after:
            layer.removed_before = skipped(layer, count)
            layer.removed_after = skipped(layer, count_after)
            # a hook of accelerate, for a `device_map`, is the layer's forward: it moves what `_old_forward` reads
            forward = "_old_forward" if hasattr(layer, "_old_forward") else "forward"
            layer.run_kept = getattr(layer, forward)
            # a partial and not a method: pickle looks methods up by their name in the class
            setattr(layer, forward, partial(_run_with_replacements, layer))
    if is_linear:
        replace_modules(model, das)
    return model


def replace_modules(model: Any, das: Mapping[str, Any]) -> None:
    """Put linear maps into attentions, MLPs and vision layers, which then run nothing else.

    They stay objects of their class, by which transformers records the outputs of vision layers. An attention that is left
    gets the cache slot of a replaced one, see `renumber_cache_slots`.

    Args:
        model: A model of transformers.
        das: That of `add_adapters`. `replaced`: by name of a module, `width`, `outputs` (their number; 0 = a tensor alone)
            and `is_layer`; `attentions`: the names of all attentions of the decoder, if any may be replaced.
    """
    for name, form in das["replaced"].items():
        module = model.get_submodule(name)
        like = next(module.parameters())
        for contents in (module._modules, module._parameters, module._buffers):
            contents.clear()
        kind = LinearSkipAdapter if form["is_layer"] else LinearMap
        module.linear_skip = kind(form["width"], form["width"], das["rank"]).to(like)
        module.linear_skip_outputs = form["outputs"]
        module.forward = partial(_run_linear_skip, module)
    if das["attentions"]:
        attentions = [(model.get_submodule(name), name not in das["replaced"]) for name in das["attentions"]]
        renumber_cache_slots(model.config.get_text_config(decoder=True), attentions)


def _run_linear_skip(module: Any, *args: Any, **kwargs: Any) -> Any:
    output = module.linear_skip(args[0] if args else kwargs["hidden_states"])
    outputs = module.linear_skip_outputs
    return (output, *[None] * (outputs - 1)) if outputs else output


def _run_with_replacements(layer: Any, *args: Any, **kwargs: Any) -> Any:
    args, kwargs = _change_hidden(args, kwargs, layer.removed_before)
    output = layer.run_kept(*args, **kwargs)
    return (layer.removed_after(output[0]), *output[1:]) if isinstance(output, tuple) else layer.removed_after(output)


def put_before(part: Any, adapter: nn.Module) -> None:
    """Make an attention or MLP read `x + A(x)` instead of `x`."""
    part.das_adapter = adapter
    part.register_forward_pre_hook(run_adapter, with_kwargs=True)


def run_adapter(part: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
    """Add the adapter's output to the input of an attention or MLP: a hook, which finds the adapter of a copied part."""
    return _change_hidden(args, kwargs, lambda x: x + part.das_adapter(x))


def _change_hidden(args: tuple[Any, ...], kwargs: Mapping[str, Any], change: Any) -> tuple[Any, Any]:
    if args:
        return (change(args[0]), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}
