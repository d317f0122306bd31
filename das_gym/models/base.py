"""The interface of a vision-language model, as the rest of das_gym uses it: its layers, and the state that they pass on."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from das_gym.models.inputs import Processor, image_blocks, meta_batch, pad_and_stack, real_tokens, text_blocks, to_device
from das_gym.models.macs import MacCounter, meta_twin, without_adapters

Stream = tuple[Tensor, Tensor | None]
"""Hidden vectors (batch, tokens, hidden_size) and where to attend, (batch, 1, 1, tokens) bool or None = everywhere."""

Memo = Callable[[tuple, Callable[[], Any]], Any]
"""`memo(key, compute)` returns what `compute()` returned the first time `key` was seen."""

Kept = Callable[[str, Mapping[Any, Any]], dict[Any, Any]]
"""`kept(stream, items)` returns the output of `VLP.encode_items` for each item, by key, from a cache where it can."""

Forward = Callable[..., Tensor]
"""`forward(mask, mark)` returns pooled features, (batch, feature_size), of some pairs under a mask (None = the full model)
and calls the `Mark` around each unit."""

Mark = Callable[[int, Tensor], None]
"""`mark(index, hidden)` is called right before and right after unit `index` runs, with its input and its output."""

HALVES = (torch.float16, torch.bfloat16)
"""The 16-bit dtypes, in which small steps of training are lost."""


def no_mark(index: int, hidden: Tensor) -> None:
    """Do nothing: the no-op `Mark`."""


def no_memo(key: tuple, compute: Callable[[], Any]) -> Any:
    """Compute the value without caching: the no-op `Memo`."""
    return compute()


@dataclass(frozen=True)
class Layer:
    """One skippable unit: its name, the stream it updates, the stage it belongs to, and what kind of layer it is."""

    name: str
    stream: str
    stage: int
    kind: str = "layer"


@dataclass(frozen=True)
class State:
    """Hidden states and attention masks that are passed from stage to stage.

    Attributes:
        hidden: Per stream, (batch, tokens, hidden_size) float.
        attend: Per stream, bool, True = a token to attend to: (batch, 1, 1, tokens) if only padding is left out, (batch, 1,
            tokens, tokens) if a token sees only those before it; None = all.
        extras: Whatever else layers read and no stage changes: image types, positions, rotary embeddings.
    """

    hidden: Mapping[str, Tensor]
    attend: Mapping[str, Tensor | None]
    extras: Mapping[str, Any] = field(default_factory=dict)

    def with_hidden(self, hidden: Mapping[str, Tensor]) -> State:
        """Return a copy of the state with other hidden vectors."""
        return replace(self, hidden=hidden)


def tensor_bytes(part: Any) -> int:
    """Return the bytes of the tensors of a `State`, or of any structure of tensors, each counted once."""
    tree = [dict(each) for each in (part.hidden, part.attend, part.extras)] if isinstance(part, State) else part
    tensors = {id(leaf): leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def summarize_tokens(rows: Tensor, real: Tensor, places: Tensor) -> Tensor:
    """Return (rows, 2, size): the mean of the real tokens of each row, and the token at its place.

    Args:
        rows: (rows, tokens, size) hidden vectors.
        real: (rows, tokens) of the same dtype, 1 for the tokens to average over, else 0; without any the mean is 0.
        places: (rows,) int64 positions.
    """
    means = torch.bmm(real[:, None], rows)[:, 0] / real.sum(1, keepdim=True).clamp(min=1)
    return torch.stack((means, rows[torch.arange(len(rows), device=rows.device), places]), dim=1)


@dataclass(frozen=True)
class Site:
    """A sub-layer of a skippable layer, as methods of fine-tuning find it.

    Attributes:
        kind: `attention`, `cross` (attention to the other stream) or `mlp`.
        owner: The module that contains `out` and `projections`.
        out: Name in `owner` of the linear layer that gives the sub-layer's output, such as `dense` or `output.dense`.
        projections: Names of the linear layers of queries and values; empty for an MLP.
        put_beside: Inserts a module that reads the sub-layer's input and adds to its output.
    """

    kind: str
    owner: nn.Module
    out: str
    projections: tuple[str, ...]
    put_beside: Callable[[nn.Module], None]

    @property
    def out_layer(self) -> Any:
        """The linear layer `out` of `owner`; AttributeError if there is none."""
        return self.owner.get_submodule(self.out)

    @property
    def width(self) -> int:
        """Width of the hidden vectors that `owner` gives."""
        return int(self.out_layer.out_features)


class SkippableLayer(nn.Module):
    """A layer and the skip adapter that replaces it; `prune` keeps one of the two for good."""

    def __init__(self, layer: nn.Module, skip_adapter: nn.Module) -> None:
        super().__init__()
        self.layer: nn.Module | None = layer
        self.skip_adapter: nn.Module | None = skip_adapter
        self.removed: dict[str, nn.Module] = {}

    def prune(self, skipped: bool) -> None:
        """Remove the layer (skipped) or its skip adapter (kept); the other must be there."""
        self.module_for(skipped)
        name = "layer" if skipped else "skip_adapter"
        if getattr(self, name) is not None:
            self.removed = {name: meta_twin(getattr(self, name))}
            setattr(self, name, None)

    def put_back(self) -> None:
        """Insert the module that `prune` removed, without its weights, so that its cost can be counted."""
        for name, module in self.removed.items():
            setattr(self, name, module)

    def module_for(self, skipped: bool) -> nn.Module:
        """Return the module that runs; ValueError if `prune` removed it."""
        module = self.skip_adapter if skipped else self.layer
        if module is None:
            removed = "skip adapter" if skipped else "layer"
            raise ValueError(f"this {removed} was removed by prune(): use the mask that the model was pruned with")
        return module


class VLP(nn.Module, ABC):
    """A vision-language pre-trained model whose layers can be skipped.

    A custom model sets `layers`, `feature_size` and `tunable`, and defines the abstract methods, `make_processor`, and
    `text_stream` and `image_stream` or `gather`. `das_gym.ModelEntry` takes the class and a function that loads it.

    `forward(batch, mask)` is `encode`, `embed`, one `enter_stage` and `advance` a stage, and `pool` in a row. Within a stage
    every layer reads the state before the stage.

    Attributes:
        layers: The skippable layers, in mask order.
        feature_size: Width of the pooled features.
        head_size: Width inside heads with a hidden layer; None = `feature_size`.
        size: `base` if the paper's settings fit this model, else `mini`; None is neither.
        pruned_mask: The mask that the model was pruned with, or None.
        tunable: Parts of parameter names; a parameter with one of them trains, others are frozen.
        projector: Parts of the names of parameters between vision tower and decoder, with a separate learning rate.
        untrainable: Why the model cannot be trained, only searched without adapters; empty if it can.
        gradient_checkpointing: Whether to use gradient checkpointing.
        front: Number of stages before the one where `enter_stage` does something; results up to there are worth caching.
        streams_apart: Whether text and image enter stage 0 as separate streams, so that one image can serve many texts.
        selects_rows: Whether `select_rows` works: each row of a state's tensors belongs to one pair.
    """

    layers: tuple[Layer, ...]
    feature_size: int
    head_size: int | None = None
    size: str | None = None
    tunable: tuple[str, ...]
    projector: tuple[str, ...] = ()
    untrainable: str = ""
    front: int = 0
    streams_apart: ClassVar[bool] = False
    selects_rows: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self.pruned_mask: np.ndarray | None = None
        self._pruned: tuple[bool, ...] | None = None
        self.frozen = False
        self.gradient_checkpointing = False

    # ---- from texts and images to the state before stage 0

    def make_processor(self, folder: Path, max_text_length: int | None = None) -> Processor:
        """Return the `Processor` that makes batches of texts and images for this model.

        Args:
            folder: Folder of the checkpoint, or of the `tokenizer` that the user gives.
            max_text_length: Longest text in tokens, longer ones are truncated; None = the model's default.
        """
        raise NotImplementedError(
            f"{type(self).__name__} does not define how batches are made: define make_processor(folder, max_text_length)"
        )

    def text_stream(self, batch: Mapping[str, Tensor]) -> Stream:
        """Return the outputs of the frozen text encoder for `input_ids` and `attention_mask`, (batch, tokens) int64."""
        raise NotImplementedError(f"{type(self).__name__} has no text encoder: define text_stream(batch), or gather")

    def image_stream(self, batch: Mapping[str, Tensor]) -> Stream:
        """Return the outputs of the frozen image encoder for `image`, (batch, 3, height, width) float32."""
        raise NotImplementedError(f"{type(self).__name__} has no image encoder: define image_stream(batch), or gather")

    def encode(self, batch: Mapping[str, Tensor]) -> State:
        """Return the encoder outputs of a `Processor`'s batch: all that neither masks nor tunable parameters change."""
        text = self.text_stream(batch)
        image = self.image_stream(batch)
        return State(
            hidden={"text": text[0], "image": image[0]},
            attend={"text": text[1], "image": image[1]},
            extras={name: batch[name] for name in ("image_types",) if name in batch},
        )

    def gather(self, processor: Any, pairs: Sequence[Any], kept: Kept) -> State:
        """Return what `encode` returns for a batch of these pairs; `kept` looks encoder outputs up in a cache."""
        texts = kept("text", {pair.text: pair.text for pair in pairs})
        images = kept("image", {pair.image.key: pair.image for pair in pairs})
        hidden_text, attend_text = pad_and_stack([texts[pair.text] for pair in pairs])
        hidden_image, attend_image = pad_and_stack([images[pair.image.key] for pair in pairs])
        types = to_device(torch.tensor([pair.image_type for pair in pairs]), hidden_image.device)
        attend = {"text": attend_text, "image": attend_image}
        return State({"text": hidden_text, "image": hidden_image}, attend, {"image_types": types})

    def encode_items(
        self, processor: Any, stream: str, items: Mapping[Any, Any], counter: MacCounter | None
    ) -> Iterator[tuple[Any, Any, int]]:
        """Encode texts (`stream` is `text`) or images (`image`) by key, with those of the same shape in one batch.

        Yields:
            Key, (tokens, hidden_size) without padding, and the MACs of encoding it, 0 without a counter.
        """
        keys = list(items)
        values = list(items.values())
        encode = self.text_stream if stream == "text" else self.image_stream
        blocks = text_blocks(processor.texts(values)) if stream == "text" else image_blocks(processor, values)
        for rows, batch in blocks:
            hidden, attend = encode({name: to_device(tensor, self.device) for name, tensor in batch.items()})
            attend = None if attend is None else attend.cpu()  # waited for once a block
            # of one row, so that each shape is counted once, whatever the number of rows
            macs = 0 if counter is None else counter.encoder(stream, {name: tensor[:1] for name, tensor in batch.items()})
            for position, row in enumerate(rows):
                yield keys[row], real_tokens(hidden[position], attend, position), macs

    def cost_example(self, processor: Any, pairs: Sequence[Any], counter: MacCounter) -> tuple[State, int]:
        """Return the encoder outputs, on `meta`, and encoder MACs of a pair with the longest text and a square image."""
        texts = processor.texts(sorted({pair.text for pair in pairs}))
        longest = int(texts["attention_mask"].sum(1).max())
        return counter.encode(meta_batch(longest, processor.square().shape))

    @abstractmethod
    def embed(self, encoded: State) -> State:
        """Return the state before stage 0.

        Encoder outputs are padded with zeros. `extras` may hold `image_types`, (batch,) int64, where 2 is NLVR2's second
        image.
        """

    # ---- through the stages

    @property
    def stages(self) -> tuple[tuple[int, ...], ...]:
        """The indices of the layers in each stage."""
        stages: list[list[int]] = [[] for _ in range(1 + max(layer.stage for layer in self.layers))]
        for index, layer in enumerate(self.layers):
            stages[layer.stage].append(index)
        return tuple(map(tuple, stages))

    def enter_stage(self, state: State, stage: int) -> tuple[State, int]:
        """Return the state as the layers of `stage` read it, and the MACs of making it.

        A model overrides this to run something between two stages, such as a projector between vision tower and decoder. On
        the `meta` device, only the shapes of the result have to be right.
        """
        return state, 0

    @abstractmethod
    def skippable_layer(self, index: int) -> SkippableLayer:
        """Return layer `index` together with its skip adapter."""

    @abstractmethod
    def run_layer(self, index: int, state: State, skipped: bool, memo: Memo = no_memo, pooled_only: bool = False) -> Tensor:
        """Return the hidden vectors of the layer's stream after the layer or its skip adapter.

        Args:
            index: Which layer, in mask order.
            state: The state before the layer's stage.
            skipped: Whether the skip adapter runs instead of the layer.
            memo: Caches parts of the layer for states with a hidden tensor in common. Its keys hold the layer's index, a
                name of the part, and the `id` of every hidden tensor that the part reads.
            pooled_only: Whether only the pooled token is needed, as in the last stage.

        Returns:
            (batch, tokens, hidden_size), or (batch, 1, hidden_size) with `pooled_only`.
        """

    def advance(self, state: State, stage: int, mask: Sequence[bool] | np.ndarray, mark: Mark = no_mark) -> State:
        """Return the state after `stage` under a mask, (n_layers,) bool, True = skipped; `mark` is called around layers."""
        stages = self.stages
        last = stage == len(stages) - 1
        state, _ = self.enter_stage(state, stage)
        hidden = dict(state.hidden)
        again = self.gradient_checkpointing and torch.is_grad_enabled()
        # The reentrant kind would drop gradients here: the input of a frozen model's first layers needs none itself.
        run = partial(checkpoint, self.run_layer, use_reentrant=False) if again else self.run_layer
        for index in stages[stage]:
            stream = self.layers[index].stream
            mark(index, state.hidden[stream])
            hidden[stream] = run(index, state, bool(mask[index]), pooled_only=last)
            mark(index, hidden[stream])
        return state.with_hidden(hidden)

    @abstractmethod
    def pool(self, state: State) -> Tensor:
        """Return (batch, feature_size) features that heads read, from the state after the last stage."""

    def forward(
        self, batch: Mapping[str, Tensor], mask: Sequence[bool] | np.ndarray | None = None, mark: Mark = no_mark
    ) -> Tensor:
        """Return pooled features, (batch, feature_size), of the subnet under `mask` (None = nothing skipped)."""
        return self.forward_encoded(self.encode(batch), mask, mark)

    def forward_encoded(
        self, encoded: State, mask: Sequence[bool] | np.ndarray | None = None, mark: Mark = no_mark
    ) -> Tensor:
        """Return pooled features, (batch, feature_size), as `forward` does, from the outputs of `encode`."""
        skips = self._skips(mask)
        state = self.embed(encoded)
        for stage in range(len(self.stages)):
            state = self.advance(state, stage, skips, mark)
        return self.pool(state)

    def _skips(self, mask: Sequence[bool] | np.ndarray | None) -> tuple[bool, ...]:
        """Return the mask as plain values: compilers trace arrays as tensors."""
        if mask is None:
            return self._pruned or (False,) * len(self.layers)
        if isinstance(mask, list | tuple) and len(mask) == len(self.layers):
            return tuple(bool(skipped) for skipped in mask)
        return tuple(self.check_mask(mask).tolist())

    def check_mask(self, mask: Sequence[bool] | np.ndarray | None) -> np.ndarray:
        """Return the (n_layers,) bool mask, or raise ValueError; None means the pruned mask, or nothing skipped."""
        if mask is None:
            return self.pruned_mask if self.pruned_mask is not None else np.zeros(len(self.layers), bool)
        given = np.asarray(mask)
        if given.dtype != bool and not np.isin(given, (0, 1)).all():
            raise ValueError(f"`mask` is not of 0 and 1: got {given.tolist()!r:.100}, expected 1 for each layer to skip")
        array = given.astype(bool)
        if array.shape != (len(self.layers),):
            raise ValueError(f"invalid mask: got shape {array.shape}, expected ({len(self.layers)},), one entry a layer")
        return array

    def language_head(self) -> nn.Module | None:
        """Return the language-model head, from features to logits; None for a model whose tasks have heads."""
        return None

    def make_forward(self, processor: Any, pairs: Sequence[Any], augment: tuple[int, int] | None = None) -> Forward:
        """Return a function that runs the model on some pairs, encoders included; their batch is made once, here.

        `augment` holds the seed and the training step that augmentations of images are drawn with; None = no augmentation.
        """
        batch = {name: to_device(tensor, self.device) for name, tensor in processor(pairs, augment).items()}
        return lambda mask=None, mark=no_mark: self(batch, mask, mark)

    def make_timed_forward(self, processor: Any, pairs: Sequence[Any]) -> Forward:
        """Return a function that runs some pairs as the deployed model does, for latency measurements."""
        return self.make_forward(processor, pairs)

    # ---- what statistics, costs and methods of fine-tuning ask for

    def pooled_tokens(self, state: State, stream: str) -> Tensor:
        """Return the position of the token that statistics read in each row, (batch,) int64; usually the token of `pool`."""
        hidden = state.hidden[stream]
        return torch.zeros(len(hidden), dtype=torch.long, device=hidden.device)

    def select_rows(self, state: State, rows: Tensor) -> State:
        """Return the state of some rows of a batch, (n,) int64, if `selects_rows`."""
        size = len(next(iter(state.hidden.values())))

        def select(value: Any) -> Any:
            return value[rows] if isinstance(value, Tensor) and len(value) == size else value

        parts = (state.hidden, state.attend, state.extras)
        return State(*({name: select(value) for name, value in part.items()} for part in parts))

    def summarize_rows(self, state: State, stream: str) -> Tensor:
        """Return what a policy per input sees of a stream: (rows, 2, hidden_size), the tokens' mean and the pooled token.

        Nothing in it depends on an answer that the batch holds.
        """
        rows, attend = self.split_rows(state, stream, state.hidden[stream])
        real = rows.new_ones(rows.shape[:2]) if attend is None else attend[:, 0, -1].to(rows)
        return summarize_tokens(rows, real, self.pooled_tokens(state, stream))

    def split_rows(self, state: State, stream: str, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return a stream's values per token in rows of one pair or prompt, and the attention mask of these rows.

        Returns:
            Values, (rows, tokens, size), and a mask, (rows, 1, 1 or tokens, tokens) bool. The last query of the mask is True
                for all tokens but padding; None = no padding.
        """
        return hidden, state.attend[stream]

    def state_bytes(self, encoded: State) -> int:
        """Return an upper bound of the bytes that the hidden vectors of a state need at any stage."""
        return tensor_bytes(dict(encoded.hidden))

    def cost_key(self, index: int) -> Hashable:
        """Return a key that layers of equal cost share, so that only one of them is counted; by default, the index."""
        return index

    def count_without_content(self) -> None:
        """Prepare a copy on the `meta` device for counting MACs, where no code may read the values of tensors."""

    def sites(self, index: int) -> tuple[Site, ...]:
        """Return the sub-layers of layer `index`, in order, for methods of fine-tuning; ValueError if there are none."""
        raise ValueError(f"a {type(self).__name__} has no known sub-layers: define sites(index)")

    def prune(self, mask: Sequence[bool] | np.ndarray) -> None:
        """Remove skipped layers, and the skip adapters of kept layers, for good; ValueError if another mask was pruned."""
        array = self.check_mask(mask)
        for index, skipped in enumerate(array):
            self.skippable_layer(index).prune(bool(skipped))
        self.pruned_mask = array
        self._pruned = tuple(array.tolist())

    def put_back(self) -> None:
        """Insert what `prune` removed, without its weights, so that its cost can be counted."""
        for index in range(len(self.layers)):
            self.skippable_layer(index).put_back()

    def remove_adapters(self) -> None:
        """Remove all adapters: kept layers are as in the checkpoint, and skipped ones have no replacement."""
        without_adapters(self)
        for index in range(len(self.layers)):
            self.skippable_layer(index).skip_adapter = nn.Identity()

    def fit_skip_adapters(self, states: Sequence[State], rank: int | None = None) -> None:
        """Give each unit a linear skip adapter that is fitted in closed form; ValueError if the model has none.

        Args:
            states: The states before stage 0 of the batches to fit on.
            rank: Rank of the maps; None = full rank.
        """
        raise ValueError(f"a {type(self).__name__} has no linear skip adapters: use skip=delete")

    def put_skip_adapters(self, tensors: Mapping[str, Tensor]) -> None:
        """Give each unit a linear skip adapter with the weights in `tensors`, by `<unit>.<weight>`; ValueError as above."""
        raise ValueError(f"a {type(self).__name__} has no linear skip adapters: use skip=delete")

    def freeze(self, dropout: bool = False) -> None:
        """Freeze all parameters but the tunable ones. Without `dropout`, the model also stays in eval mode from now on."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(any(part in name for part in self.tunable))
        self.frozen = not dropout
        self.train(dropout)

    def train(self, mode: bool = True) -> VLP:
        """Set the mode as in torch, except that a frozen model stays in eval mode."""
        return super().train(mode and not self.frozen)

    def tunable_state(self) -> dict[str, Tensor]:
        """Return the tunable parameters by name, which an adaptation file holds."""
        return {name: p for name, p in self.named_parameters() if any(part in name for part in self.tunable)}

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return the tunable parameters outside of skippable layers, such as poolers, which train under any mask."""
        inside = {id(p) for index in range(len(self.layers)) for p in self.skippable_layer(index).parameters()}
        wanted = {id(p) for p in self.tunable_state().values()} - inside
        return [p for p in self.parameters() if id(p) in wanted]

    @property
    def encoders_train(self) -> bool:
        """Whether a parameter of the encoders is trained, so that encoder outputs cannot be cached."""
        # What comes before stage 0 trains if any other parameter does: layers and tunable parameters run after the cache.
        free = {id(p) for index in range(len(self.layers)) for p in self.skippable_layer(index).parameters()}
        free |= {id(p) for p in self.tunable_state().values()}
        return any(p.requires_grad and id(p) not in free for p in self.parameters())

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return next(self.parameters()).device


def fingerprint(vlp: VLP) -> str:
    """Return 16 hex digits of a hash of all frozen parameters; `prune` changes it, since it removes some."""
    digest = hashlib.sha256()
    for name, parameter in sorted(vlp.named_parameters()):
        if not any(part in name for part in vlp.tunable):
            digest.update(f"{name}{tuple(parameter.shape)}".encode())
            digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def check_class(kind: Any) -> None:
    """Check that something is a class of models; Python names the methods that it lacks when it is instantiated."""
    if not isinstance(kind, type) or not issubclass(kind, VLP):
        name = getattr(kind, "__name__", repr(kind))
        raise TypeError(f"invalid model class: got {name}, expected a subclass of das_gym.models.base.VLP")


def check_model(vlp: VLP) -> None:
    """Check a model for errors that would give wrong masks or train nothing."""
    wrong = []
    stages = sorted({layer.stage for layer in vlp.layers})
    if not stages or stages != list(range(len(stages))):
        wrong.append(f"its `layers` have the stages {stages}, expected 0, 1, 2, ... without a gap")
    if len({layer.name for layer in vlp.layers}) < len(vlp.layers):
        wrong.append("two layers have the same name")
    if vlp.tunable and not vlp.tunable_state():
        wrong.append(f"no parameter has one of `tunable`={vlp.tunable} in its name")
    if wrong:
        raise ValueError(f"this {type(vlp).__name__} cannot be used: {'; '.join(wrong)}")
