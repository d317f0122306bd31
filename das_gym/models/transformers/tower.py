"""Run the layers of a vision tower one by one under a mask; the model's own forward then reads what they gave.

Images lie flat in one stream, `image`, (1, tokens of all images, hidden_size). If the model also reads the outputs of
earlier layers (Qwen3-VL's deepstack), those stand before the current hidden states in it, in order.

Image features are computed once, kept, and given to the model's forward again (`replace_image_features`).
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from das_gym.models.base import HALVES
from das_gym.models.transformers.stack import (
    Call,
    Recording,
    find_vision_tower,
    first_output,
    record,
    replace_forwards,
    skip_forward,
)

UNUSED = ("last_hidden_state", "hidden_states", "attentions")
"""Outputs of a vision tower that the decoder does not read."""

PROJECTORS = (
    *("multi_modal_projector", "connector", "merger", "deepstack_merger_list"),
    *("projector", "aligner", "embed_vision"),
)
"""Names of the module between vision tower and decoder."""


@dataclass(frozen=True)
class TowerCapabilities:
    """How the layers of a vision tower can be skipped.

    Attributes:
        reads: Positions of the layers whose outputs the model reads, apart from what the next layer does with them.
        protected: Positions of layers that are never skipped, with the reason.
    """

    reads: tuple[int, ...]
    protected: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class IntegerTensor:
    """A tensor of integers by value, such as lengths of images: MACs are counted on tensors without values."""

    values: tuple[int, ...]
    shape: tuple[int, ...]
    device: torch.device
    dtype: torch.dtype

    @classmethod
    def wrap(cls, value: Any) -> Any:
        """Convert a tensor of integers; anything else stays as it is."""
        if not isinstance(value, Tensor) or value.dtype not in (torch.int32, torch.int64):
            return value
        return cls(tuple(value.flatten().tolist()), tuple(value.shape), value.device, value.dtype)

    @staticmethod
    def unwrap(value: Any) -> Any:
        """Return the tensor that `wrap` converted; anything else stays as it is."""
        if not isinstance(value, IntegerTensor):
            return value
        return torch.tensor(value.values, device=value.device, dtype=value.dtype).view(value.shape)


class ImageBatch(NamedTuple):
    """Images that run together: the shape of their hidden states, and the arguments of each layer."""

    shape: tuple[int, ...]
    calls: tuple[Call, ...]

    @property
    def tokens(self) -> int:
        """Number of tokens of all images together."""
        return int(torch.Size(self.shape[:-1]).numel())

    def call(self, place: int) -> Call:
        """Return the arguments with which the layer at a position runs."""
        call = self.calls[place]
        return Call(*tree_map(IntegerTensor.unwrap, (call.args, call.kwargs)))


class ImageSlice(NamedTuple):
    """Where the images of a prompt lie: in which `ImageBatch`, and in which of its rows (None = all of it)."""

    batch: int
    rows: slice | None


class VisionTower:
    """The vision tower of a model, layer by layer."""

    def __init__(self, model: Any, capabilities: TowerCapabilities) -> None:
        self.model = model
        self.capabilities = capabilities
        self.stack = find_vision_tower(model)

    def record_images(
        self, given: Mapping[Any, Mapping[str, Tensor]], groups: Sequence[Sequence[Any]]
    ) -> tuple[Tensor, tuple[ImageBatch, ...], dict[Any, ImageSlice], list[Sequence[Any]]]:
        """Record how the tower runs on images.

        Args:
            given: Pixels and sizes by key.
            groups: Keys of images of one form, which run together where no argument of a layer depends on an image.

        Returns:
            What its first layer reads, the batches of images, where each key's images lie, and the groups that ran together.
        """
        hidden: list[Tensor] = []
        batches: list[ImageBatch] = []
        slices: dict[Any, ImageSlice] = {}
        by_shape: dict[tuple[int, ...], int] = {}
        recorded: list[Sequence[Any]] = []
        waiting = list(groups)
        while waiting:
            keys = waiting.pop(0)
            recording = self.record(join_images([given[key] for key in keys]))
            embedded = recording.embedded
            arguments = [(call.args, call.kwargs) for call in recording.calls]
            calls = tuple(Call(*tree_map(IntegerTensor.wrap, each)) for each in arguments)
            # images that no argument depends on run together with others of their shape
            joins = embedded.dim() == 3 and not any(isinstance(leaf, Tensor) for leaf in tree_leaves(arguments))
            if len(keys) > 1 and not joins:
                waiting = [*([key] for key in keys), *waiting]
                continue
            number = by_shape.setdefault(tuple(embedded.shape[1:]), len(batches)) if joins else len(batches)
            if number == len(batches):
                hidden.append(embedded)
                batches.append(ImageBatch(tuple(embedded.shape), calls))
                start = 0
            else:
                start = len(hidden[number])
                hidden[number] = torch.cat((hidden[number], embedded))
                batches[number] = ImageBatch(tuple(hidden[number].shape), calls)
            each = len(embedded) // len(keys)
            for place, key in zip(range(start, start + len(embedded), each), keys, strict=True):
                slices[key] = ImageSlice(number, slice(place, place + each) if joins else None)
            recorded.append(keys)
        if not hidden:
            parameter = next(self.stack.layers.parameters())
            return parameter.new_empty(1, 0, parameter.shape[-1]), (), {}, []
        flat = torch.cat([part.reshape(1, -1, part.shape[-1]) for part in hidden], dim=1)
        return flat, tuple(batches), slices, recorded

    def record(self, given: Mapping[str, Tensor]) -> Recording:
        """Record the calls of layers for the images of a prompt; ValueError if hidden states change between layers."""
        recording = record(self.stack, partial(image_features, self.model, given))
        if recording.added:
            raise ValueError(f"{type(self.model).__name__} changes hidden states between its vision layers.")
        return recording

    def step(
        self, hidden: Tensor, batches: Sequence[ImageBatch], place: int, run: Callable[[Tensor, Call], Tensor] | None
    ) -> Tensor:
        """Return the stream after a layer; `run` gives its output for a batch, None = the layer is skipped."""
        sizes = [batch.tokens for batch in batches]
        earlier, current = hidden.split([hidden.shape[1] - sum(sizes), sum(sizes)], dim=1)
        # A layer's input is the output of the layer before. If the model reads that, it has to stay in the stream.
        keeps_input = place - 1 in self.capabilities.reads
        if run is None:
            return torch.cat((hidden, current), dim=1) if keeps_input else hidden
        outputs = []
        for batch, part in zip(batches, current.split(sizes, dim=1), strict=True):
            outputs.append(run(part.view(batch.shape), batch.call(place)).reshape(1, -1, part.shape[-1]))
        return torch.cat((hidden if keeps_input else earlier, *outputs), dim=1)

    def features(
        self,
        hidden: Tensor,
        batches: Sequence[ImageBatch],
        slices: Mapping[Any, ImageSlice],
        given: Mapping[Any, Mapping[str, Tensor]],
        groups: Sequence[Sequence[Any]],
    ) -> dict[Any, dict[str, Any]]:
        """Compute the features of the images of each key from the stream after the last layer that is read.

        Without content (on `meta`), zeros are taken. The other arguments are those of `record_images`, and what it returned.
        """
        if hidden.is_meta:
            hidden = torch.zeros(hidden.shape, dtype=hidden.dtype, device=next(self.stack.layers.parameters()).device)
        sizes = [batch.tokens for batch in batches]
        found: dict[Any, dict[str, Any]] = {}
        outputs = [part.split(sizes, dim=1) for part in hidden.split(sum(sizes), dim=1)] if batches else []
        for keys in groups:
            number, rows = slices[keys[0]]
            own = [part[number].view(batches[number].shape) for part in outputs]
            if rows is not None:
                own = [part[rows.start : rows.start + len(keys) * (rows.stop - rows.start)] for part in own]
            by_layer = dict(zip(self.capabilities.reads, own, strict=True))
            features = self.features_of_outputs(join_images([given[key] for key in keys]), by_layer)
            found |= zip(keys, divide_images(features, len(keys)), strict=True)
        return found

    def read_outputs(self, given: Mapping[str, Tensor]) -> dict[str, Any]:
        """Run the tower, and keep pixels, sizes, and the outputs of the layers that are read, for `finish_features`."""
        outputs: dict[int, Tensor] = {}

        def keep(place: int, _: nn.Module, __: Any, output: Any) -> None:
            outputs[place] = first_output(output)

        hooks = [self.stack.layers[place].register_forward_hook(partial(keep, place)) for place in self.capabilities.reads]
        try:
            image_features(self.model, given)
        finally:
            for hook in hooks:
                hook.remove()
        return {"given": dict(given), "outputs": [outputs[place] for place in self.capabilities.reads]}

    def finish_features(self, kept: Mapping[str, Any]) -> dict[str, Any]:
        """Compute image features from what `read_outputs` returned."""
        return self.features_of_outputs(kept["given"], dict(zip(self.capabilities.reads, kept["outputs"], strict=True)))

    def features_of_outputs(self, given: Mapping[str, Tensor], outputs: Mapping[int, Tensor]) -> dict[str, Any]:
        """Compute image features as if layers gave these outputs, by position; the others pass their input on."""

        def instead(place: int, hidden: Tensor) -> Tensor:
            return outputs.get(place, hidden)

        forwards = {layer: skip_forward(layer, partial(instead, n)) for n, layer in enumerate(self.stack.layers)}
        with replace_forwards(forwards):
            return image_features(self.model, given)


def padded_images(
    hidden: Tensor, batches: Sequence[ImageBatch], slices: Sequence[ImageSlice | None]
) -> tuple[Tensor, Tensor]:
    """Return (prompts, tokens, size) of each prompt's images, None = it has none, and (prompts, tokens) bool: no padding."""
    sizes = [batch.tokens for batch in batches]
    parts = hidden[:, hidden.shape[1] - sum(sizes) :].split(sizes, dim=1)
    rows = []
    real = []
    for one in slices:
        row = hidden.new_zeros(1, hidden.shape[-1])
        if one is not None:
            part = parts[one.batch].view(*batches[one.batch].shape[:-1], -1)
            row = (part if one.rows is None else part[one.rows]).reshape(-1, part.shape[-1])
        rows.append(row)
        real.append(torch.full((len(row),), one is not None, device=hidden.device))
    pad = partial(nn.utils.rnn.pad_sequence, batch_first=True)
    return pad(rows), pad(real)


def find_projectors(model: Any) -> dict[str, nn.Module]:
    """Return the modules between vision tower and decoder by name; empty if none has a known name."""
    found = {n: m for n, m in model.named_modules() if n.rpartition(".")[2] in PROJECTORS}
    return {n: m for n, m in found.items() if not any(n.startswith(f"{other}.") for other in found)}


def compute_in_float32(module: nn.Module) -> None:
    """Make a 16-bit module compute in float32 and return its input's dtype: 16 bits would lose small training steps."""
    if isinstance(module, nn.ModuleList):
        for part in module:
            compute_in_float32(part)
        return
    if not any(p.dtype in HALVES for p in module.parameters()):
        return
    module.float()
    dtypes: list[torch.dtype] = []  # of calls under way: a module may be called again within its own call

    def cast(value: Any, dtype: torch.dtype) -> Any:
        return tree_map(lambda v: v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v, value)

    def widen(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.is_floating_point()]
        dtypes.append(tensors[0].dtype if tensors else torch.float32)
        return cast((args, dict(kwargs)), torch.float32)

    module.register_forward_pre_hook(widen, with_kwargs=True)
    module.register_forward_hook(lambda _, __, output: cast(output, dtypes.pop()))


def _owner(model: Any) -> Any:
    return model.base_model if hasattr(model.base_model, "get_image_features") else model


def image_features(model: Any, given: Mapping[str, Tensor]) -> dict[str, Any]:
    """Compute the features of images, given as pixels and sizes by name, by the name under which the model returns them."""
    function = _owner(model).get_image_features
    known = inspect.signature(function).parameters
    output = function(**{name: value for name, value in given.items() if name in known or "pixel" in name})
    if not hasattr(output, "items"):
        return {"": _as_lists(output)}
    kept = {name: _as_lists(value) for name, value in output.items() if name not in UNUSED and value is not None}
    return kept or {UNUSED[0]: _as_lists(output[UNUSED[0]])}  # Llama 4's projector reads that itself


def join_images(given: Sequence[Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
    """Return pixels and sizes of several inputs of one form as one input."""
    return given[0] if len(given) == 1 else {name: torch.cat([one[name] for one in given]) for name in given[0]}


def divide_images(features: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Return the features of each of the `count` inputs that `join_images` joined: the inverse of `_concatenate`."""

    def divide(value: Any) -> list[Any]:
        if isinstance(value, Tensor):
            return [part.clone() for part in value.unflatten(0, (count, -1))]
        if value and isinstance(value[0], list):
            return [list(parts) for parts in zip(*map(divide, value), strict=True)]
        each = len(value) // count
        return [value[number * each : (number + 1) * each] for number in range(count)]

    if count == 1:
        return [features]
    divided = {name: divide(value) for name, value in features.items()}
    return [{name: parts[number] for name, parts in divided.items()} for number in range(count)]


def _as_lists(value: Any) -> Any:
    return [_as_lists(part) for part in value] if isinstance(value, list | tuple) else value


@contextmanager
def replace_image_features(model: Any, given: Sequence[Mapping[str, Any]]) -> Iterator[None]:
    """Make the model use image features within the block, instead of running its vision tower.

    They are what `image_features` returned for each row with images, in the order of the batch.
    """
    owner = _owner(model)
    before = owner.__dict__.get("get_image_features")
    together = {name: _concatenate([one[name] for one in given]) for name in given[0]}
    owner.get_image_features = lambda *args, **kwargs: together.get("", _Features(together))
    try:
        yield
    finally:
        if before is None:
            del owner.get_image_features
        else:
            owner.get_image_features = before


class _Features(dict[str, Any]):
    """Features as transformers' outputs return them: by name, by attribute, or by number."""

    def __getattr__(self, name: str) -> Any:
        return self.get(name)

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else tuple(self.values())[key]


def _concatenate(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], Tensor):
        return torch.cat(list(parts))
    if parts[0] and isinstance(parts[0][0], list):
        return [_concatenate(same) for same in zip(*parts, strict=True)]
    return [part for row in parts for part in row]
