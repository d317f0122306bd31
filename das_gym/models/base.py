"""What every vision-language model offers to the rest of das_gym."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from das_gym.models.encoding import input_blocks, meta_batch, real_tokens, stacked
from das_gym.models.macs import MacCounter, meta_twin, without_adapters

if TYPE_CHECKING:
    from das_gym.models.inputs import Processor

Stream = tuple[Tensor, Tensor | None]
"""Hidden vectors (batch, tokens, hidden_size) and what to attend to, (batch, 1, 1, tokens) bool or None = all."""

Memo = Callable[[tuple, Callable[[], Any]], Any]
"""`memo(key, compute)` returns what `compute()` returned the first time `key` was seen."""


Kept = Callable[[str, Mapping[Any, Any]], dict[Any, Any]]
"""`kept(stream, items)` returns what `VLP.encode_items` makes of each item, by key, from memory where it can."""


Forward = Callable[..., Tensor]
"""`forward(mask)` returns pooled features, (batch, feature_size), of some pairs under a mask; None = nothing skipped."""


Mark = Callable[[int, Tensor], None]
"""`mark(index, hidden)` is called right before and right after unit `index` runs, with what it reads and what it gives."""


def no_mark(index: int, hidden: Tensor) -> None:
    """The mark that leaves none."""


def no_memo(key: tuple, compute: Callable[[], Any]) -> Any:
    """The memo that remembers nothing."""
    del key
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
    """What flows from stage to stage.

    Attributes:
        hidden: Per stream, (batch, tokens, hidden_size) float.
        attend: Per stream, bool, True = a token to attend to: (batch, 1, 1, tokens) where only padding is left out,
            (batch, 1, tokens, tokens) where a token sees those before it; None = all.
        extras: Whatever else layers read and no stage changes: image types, positions, rotary embeddings. What `hidden` and
            `attend` may be longer than, by learnt tokens behind the others (prompt tuning), unless `VLP.promptless` says no.
    """

    hidden: Mapping[str, Tensor]
    attend: Mapping[str, Tensor | None]
    extras: Mapping[str, Any] = field(default_factory=dict)

    def with_hidden(self, hidden: Mapping[str, Tensor]) -> State:
        """The same state with other hidden vectors."""
        return replace(self, hidden=hidden)


def bytes_of(part: Any) -> int:
    """Bytes of the tensors of a `State`, or of any structure of tensors, each counted once."""
    tree = [dict(each) for each in (part.hidden, part.attend, part.extras)] if isinstance(part, State) else part
    tensors = {id(leaf): leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


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
    def last(self) -> Any:
        """The module that `out` names."""
        return self.owner.get_submodule(self.out)

    @property
    def width(self) -> int:
        """Width of hidden vectors."""
        return int(self.last.out_features)


class SkippableLayer(nn.Module):
    """A layer and the skip adapter that stands in for it; `prune` keeps one of the two for good."""

    def __init__(self, layer: nn.Module, skip_adapter: nn.Module) -> None:
        super().__init__()
        self.layer: nn.Module | None = layer
        self.skip_adapter: nn.Module | None = skip_adapter
        self.removed: dict[str, nn.Module] = {}

    def prune(self, skipped: bool) -> None:
        """Remove the layer (skipped) or its skip adapter (kept).

        Raises:
            ValueError: the one to keep was removed before.
        """
        self.chosen(skipped)
        name = "layer" if skipped else "skip_adapter"
        if getattr(self, name) is not None:
            self.removed = {name: meta_twin(getattr(self, name))}
            setattr(self, name, None)

    def put_back(self) -> None:
        """Have again what `prune` removed, without its content: for counting what it cost."""
        for name, module in self.removed.items():
            setattr(self, name, module)

    def chosen(self, skipped: bool) -> nn.Module:
        """The module that runs.

        Raises:
            ValueError: that module was removed by `prune`.
        """
        module = self.skip_adapter if skipped else self.layer
        if module is None:
            removed, kept = ("skip adapter", "layer") if skipped else ("layer", "skip adapter")
            raise ValueError(f"this {removed} was removed by prune(); only its {kept} is left: use the pruned mask")
        return module


class VLP(nn.Module, ABC):
    """A vision-language pre-trained model whose layers can be skipped.

    What a model of one's own offers: `layers`, `feature_size` and `tunable`; the methods that are abstract here; `inputs`;
    and, for `das_gym.ModelEntry`, a function that loads it. Everything else has a default. `check_class` and
    `check_model` say what is missing, all of it at once.

    `forward(batch, mask)` is `encode`, `embed`, one `enter` and `advance` a stage, and `pool` in a row. Within a stage
    every layer reads the state before the stage.

    Attributes:
        layers: The skippable layers, in mask order.
        feature_size: Width of the pooled features.
        head_size: Width inside heads that have an inside; None = `feature_size`.
        size: What `ProblemConfig.size` calls a model of this size, `mini` or `base`; None fits either.
        pruned_mask: The mask whose other choices were removed, or None while all are there.
        tunable: Parts of parameter names; a parameter with one of them trains, others are frozen.
        projector: Parts of the names of those that train between a vision tower and a decoder, at a rate of their own.
        untrainable: Why nothing of it can train, so that it can only be searched as it came; empty where something can.
        promptless: Why no learnt tokens can stand among its own; empty where they can.
        gradient_checkpointing: Whether what a layer keeps for the gradient is computed again when it is wanted.
        prompts: What adds learnt tokens to the state before stage 0; None adds none.
        front: How many stages come before the one that `enter` does something for: what they lead to is worth keeping.
        streams_apart: Whether text and image enter stage 0 as hidden vectors of their own, a batch of 1 fitting any.
    """

    layers: tuple[Layer, ...]
    feature_size: int
    head_size: int | None = None
    size: str | None = None
    tunable: tuple[str, ...]
    projector: tuple[str, ...] = ()
    untrainable: str = ""
    promptless: str = ""
    front: int = 0
    streams_apart: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        self.pruned_mask: np.ndarray | None = None
        self._pruned: tuple[bool, ...] | None = None
        self.frozen = False
        self.prompts: nn.Module | None = None
        self.gradient_checkpointing = False

    def text_stream(self, batch: Mapping[str, Tensor]) -> Stream:
        """Encoder outputs of `input_ids` and `attention_mask`, before all that trains, so that they can be kept."""
        raise NotImplementedError(f"{type(self).__name__} encodes no texts apart: write text_stream(batch), or gather")

    def image_stream(self, batch: Mapping[str, Tensor]) -> Stream:
        """Encoder outputs of `image`, likewise."""
        raise NotImplementedError(f"{type(self).__name__} encodes no images apart: write image_stream(batch), or gather")

    def encode(self, batch: Mapping[str, Tensor]) -> State:
        """Encoder outputs: all that neither a mask nor a tunable parameter touches."""
        text, image = self.text_stream(batch), self.image_stream(batch)
        return State(
            hidden={"text": text[0], "image": image[0]},
            attend={"text": text[1], "image": image[1]},
            extras={name: batch[name] for name in ("image_types",) if name in batch},
        )

    def gather(self, processor: Any, pairs: Sequence[Any], kept: Kept) -> State:
        """The encoder outputs of some pairs as one batch: all that neither a mask nor a tunable parameter touches.

        Args:
            processor: What `inputs` gave.
            pairs: At least one of what the task makes of its examples.
            kept: Encodes what is not kept yet, see `encode_items`.
        """
        texts = kept("text", {pair.text: pair.text for pair in pairs})
        images = kept("image", {pair.image.key: pair.image for pair in pairs})
        hidden_text, attend_text = stacked([texts[pair.text] for pair in pairs])
        hidden_image, attend_image = stacked([images[pair.image.key] for pair in pairs])
        types = torch.tensor([pair.image_type for pair in pairs], device=hidden_image.device)
        attend = {"text": attend_text, "image": attend_image}
        return State({"text": hidden_text, "image": hidden_image}, attend, {"image_types": types})

    def encode_items(
        self, processor: Any, stream: str, items: Mapping[Any, Any], counter: MacCounter
    ) -> Iterator[tuple[Any, Any, int]]:
        """Encode texts or images, those of one shape together, so that an output depends on its company by rounding at most.

        With float32 on the CPUs that we measured, batches of 1, 2, 4 and 8 give the same bits.

        Args:
            processor: What `inputs` gave.
            stream: `text` or `image`.
            items: What to encode, by key.
            counter: Counts MACs.

        Yields:
            Key, (tokens, hidden_size) without padding, and MACs that were not told of before.
        """
        keys = list(items)
        encode = self.text_stream if stream == "text" else self.image_stream
        for rows, batch in input_blocks(processor, stream, list(items.values())):
            hidden, attend = encode({name: tensor.to(self.device) for name, tensor in batch.items()})
            macs = counter.encoder(stream, batch)
            for position, row in enumerate(rows):
                yield keys[row], real_tokens(hidden[position], attend, position), macs if position == 0 else 0

    def sample(self, processor: Any, pairs: Sequence[Any], counter: MacCounter) -> tuple[State, int]:
        """The encoder outputs of one pair, and the MACs of its encoders: what costs are counted at.

        Args:
            processor: What `inputs` gave.
            pairs: At least one; the longest text of all, with a square image, stands for them.
            counter: Counts MACs.
        """
        texts = processor.texts(sorted({pair.text for pair in pairs}))
        longest = int(texts["attention_mask"].sum(1).max())
        return counter.encode(meta_batch(longest, processor.square().shape))

    def own_head(self) -> nn.Module | None:
        """What makes logits of features in the model as it came; None: a task brings its head."""
        return None

    def inputs(self, folder: Path, max_text_length: int | None = None) -> Processor:
        """What makes batches of texts and images for this model.

        Args:
            folder: The checkpoint's, or that of its tokenizer where a person names another.
            max_text_length: Longest text in tokens, longer ones are cut; None = the usual one.

        Raises:
            ValueError, FileNotFoundError: the folder's tokenizer is missing, or is not this model's.
        """
        raise NotImplementedError(f"{type(self).__name__} makes no batches: write inputs(folder, max_text_length)")

    def ready(self, processor: Any, pairs: Sequence[Any], augment: tuple[int, int] | None = None) -> Forward:
        """A plain forward of some pairs, encoders included, whose batch is made already: what latency is measured of.

        Args:
            processor: What `inputs` gave.
            pairs: At least one.
            augment: Seed and step from which each image draws its own augmentation; None for none.
        """
        batch = {name: tensor.to(self.device) for name, tensor in processor(pairs, augment).items()}
        return lambda mask=None: self(batch, mask)

    def served(self, processor: Any, pairs: Sequence[Any]) -> Callable[..., Tensor]:
        """As `ready`, as it runs where the model is served: what a budget of latency is measured of.

        Args:
            processor: What `inputs` gave.
            pairs: At least one.

        Returns:
            `forward(mask, mark)`, see `Mark`: what heads read, (n, feature_size).
        """
        forward, run_layer = self.ready(processor, pairs), self.run_layer

        def timed(mask: Sequence[bool] | np.ndarray | None = None, mark: Mark = no_mark) -> Tensor:
            def run(index: int, state: State, *args: Any, **kwargs: Any) -> Tensor:
                mark(index, state.hidden[self.layers[index].stream])
                hidden = run_layer(index, state, *args, **kwargs)
                mark(index, hidden)
                return hidden

            self.run_layer = run  # type: ignore[method-assign]
            try:
                return forward(mask)
            finally:
                del self.run_layer

        return timed

    @abstractmethod
    def embed(self, encoded: State) -> State:
        """Encoder outputs to the state before stage 0.

        Encoder outputs are padded with zeros, `extras` hold the `image_types` (batch,) int64 of the batch, where it has
        any: 2 is NLVR2's second image.
        """

    def begin(self, encoded: State) -> State:
        """As `embed`, with learnt tokens where there are some."""
        state = self.embed(encoded)
        return state if self.prompts is None else self.prompts(state)

    def enter(self, state: State, stage: int) -> tuple[State, int]:
        """The state as the layers of `stage` read it, and the MACs of what made it so.

        The state itself, unless a model says otherwise. For what runs between two stages and depends on the masks of those
        before, such as a projector between layers of a vision tower and layers of a decoder. A state without content (on
        `meta`) gives any content of the right shapes.
        """
        del stage
        return state, 0

    def state_bytes(self, encoded: State) -> int:
        """Bytes of the hidden vectors of a state, at most, on the way through the stages."""
        return bytes_of(dict(encoded.hidden))

    @abstractmethod
    def skippable(self, index: int) -> SkippableLayer:
        """The module of layer `index`."""

    def alike(self, index: int) -> Hashable:
        """Layers for which this is equal cost the same on the same shapes; one of them is counted for all.

        The default says nothing of the kind: each layer is counted by itself.
        """
        return index

    def sites(self, index: int) -> tuple[Site, ...]:
        """Where methods of fine-tuning can put something into layer `index`: its sub-layers, in order.

        Raises:
            ValueError: the model does not tell, or a layer has no such places.
        """
        raise ValueError(f"a {type(self).__name__} does not tell its layers' parts: write sites(index)")

    @abstractmethod
    def run_layer(self, index: int, state: State, skipped: bool, memo: Memo = no_memo, pooled_only: bool = False) -> Tensor:
        """New hidden vectors of the layer's stream.

        Args:
            index: Which layer, in mask order.
            state: The state before the layer's stage.
            skipped: Whether the skip adapter runs instead of the layer.
            memo: Shares work between states that have a hidden tensor in common; its keys are the layer's index, a word
                for the part, and the `id` of every hidden tensor that the part reads.
            pooled_only: Compute the pooled token alone; allowed in the last stage.

        Returns:
            (batch, tokens, hidden_size), or (batch, 1, hidden_size) with `pooled_only`.
        """

    @abstractmethod
    def pool(self, state: State) -> Tensor:
        """(batch, feature_size) features that heads read, from the state after the last stage."""

    def pooled_tokens(self, state: State, stream: str) -> Tensor:
        """(batch,) int64: the token of a stream that statistics look at, usually the one that `pool` reads."""
        hidden = state.hidden[stream]
        return torch.zeros(len(hidden), dtype=torch.long, device=hidden.device)

    def rows_of(self, state: State, stream: str, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        """Hidden vectors of a stream, or other numbers of each token of it, row by row: what statistics look at.

        Returns:
            (rows, tokens, size of the last axis), and (rows, 1, 1 or tokens, tokens) bool, True in the last row of that
            where there is a token and no padding; None = everywhere.
        """
        return hidden, state.attend[stream]

    @property
    def stages(self) -> tuple[tuple[int, ...], ...]:
        """Layer indices of each stage."""
        count = 1 + max(layer.stage for layer in self.layers)
        return tuple(tuple(i for i, layer in enumerate(self.layers) if layer.stage == stage) for stage in range(count))

    def advance(self, state: State, stage: int, mask: Sequence[bool] | np.ndarray) -> State:
        """The state after `stage` under `mask` ((n_layers,) bool, True = skipped)."""
        last = stage == len(self.stages) - 1
        state, _ = self.enter(state, stage)
        hidden = dict(state.hidden)
        again = self.gradient_checkpointing and torch.is_grad_enabled()
        run = partial(checkpoint, self.run_layer, use_reentrant=False) if again else self.run_layer
        for index in self.stages[stage]:
            hidden[self.layers[index].stream] = run(index, state, bool(mask[index]), pooled_only=last)
        return state.with_hidden(hidden)

    def forward(self, batch: Mapping[str, Tensor], mask: Sequence[bool] | np.ndarray | None = None) -> Tensor:
        """Pooled features, (batch, feature_size), of the subnet under `mask` (None = nothing skipped)."""
        return self.forward_encoded(self.encode(batch), mask)

    def forward_encoded(self, encoded: State, mask: Sequence[bool] | np.ndarray | None = None) -> Tensor:
        """As `forward`, from encoder outputs."""
        skips = self._skips(mask)
        state = self.begin(encoded)
        for stage in range(len(self.stages)):
            state = self.advance(state, stage, skips)
        return self.pool(state)

    def _skips(self, mask: Sequence[bool] | np.ndarray | None) -> tuple[bool, ...]:
        """As `check_mask`, in plain values, which compilers take for constants: they trace arrays as tensors."""
        if mask is None:
            return self._pruned or (False,) * len(self.layers)
        if isinstance(mask, list | tuple) and len(mask) == len(self.layers):
            return tuple(bool(skipped) for skipped in mask)
        return tuple(self.check_mask(mask).tolist())

    def check_mask(self, mask: Sequence[bool] | np.ndarray | None) -> np.ndarray:
        """The mask as an array; None means the pruned mask, or nothing skipped.

        Raises:
            ValueError: the mask does not have one entry a layer.
        """
        if mask is None:
            return self.pruned_mask if self.pruned_mask is not None else np.zeros(len(self.layers), bool)
        array = np.asarray(mask, dtype=bool)
        if array.shape != (len(self.layers),):
            raise ValueError(f"mask of shape {array.shape}: this model has {len(self.layers)} layers, give one bool each")
        return array

    def prune(self, mask: Sequence[bool] | np.ndarray) -> None:
        """Remove skipped layers, and the skip adapters of kept ones: the model really is smaller."""
        array = self.check_mask(mask)
        for index, skipped in enumerate(array):
            self.skippable(index).prune(bool(skipped))
        self.pruned_mask = array
        self._pruned = tuple(array.tolist())

    def remove_adapters(self) -> None:
        """Have nothing in the place of adapters: kept layers are as they came, and skipped ones are left out."""
        without_adapters(self)
        for index in range(len(self.layers)):
            self.skippable(index).skip_adapter = nn.Identity()

    def count_without_content(self) -> None:
        """Called on a copy without content before its MACs are counted: have nothing depend on what tensors hold."""

    def freeze(self, dropout: bool = False) -> None:
        """Freeze every parameter that is not tunable, and stay in eval mode from now on, unless `dropout` is wanted."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(any(part in name for part in self.tunable))
        self.frozen = not dropout
        self.train(dropout)

    def train(self, mode: bool = True) -> VLP:
        """As in torch, except that a frozen model stays in eval mode."""
        return super().train(mode and not self.frozen)

    def tunable_state(self) -> dict[str, Tensor]:
        """The tunable parameters by name: all that an adaptation has to keep."""
        return {name: p for name, p in self.named_parameters() if any(part in name for part in self.tunable)}

    def shared_parameters(self) -> list[nn.Parameter]:
        """Those that train under any mask, outside of its skippable layers: poolers, token types and the like."""
        inside = {id(p) for index in range(len(self.layers)) for p in self.skippable(index).parameters()}
        wanted = {id(p) for p in self.tunable_state().values()} - inside
        return [p for p in self.parameters() if id(p) in wanted]

    @property
    def encoders_train(self) -> bool:
        """Whether something trains on which encoder outputs depend, so that they cannot be kept."""
        parts = (self.prompts, *(self.skippable(index) for index in range(len(self.layers))))
        free = {id(p) for part in parts if part is not None for p in part.parameters()}
        free |= {id(p) for p in self.tunable_state().values()}
        return any(p.requires_grad and id(p) not in free for p in self.parameters())

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return next(self.parameters()).device


def fingerprint(vlp: VLP) -> str:
    """16 hex digits that change with any frozen parameter; take it before `prune` removes some."""
    digest = hashlib.sha256()
    for name, parameter in sorted(vlp.named_parameters()):
        if not any(part in name for part in vlp.tunable):
            digest.update(f"{name}{tuple(parameter.shape)}".encode())
            digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def check_class(kind: Any) -> None:
    """Refuse a class that does not offer what a model has to.

    Raises:
        TypeError: names all that is missing.
    """
    if not isinstance(kind, type) or not issubclass(kind, VLP):
        named = getattr(kind, "__name__", repr(kind))
        lacks = sorted({*VLP.__abstractmethods__, "inputs", "text_stream", "image_stream"})
        lacks = [name for name in lacks if not callable(getattr(kind, name, None))]
        raise TypeError(f"{named} is no model: derive it from das_gym.models.base.VLP; it lacks {', '.join(lacks)}")
    streams = [name for name in ("text_stream", "image_stream") if getattr(kind, name) is getattr(VLP, name)]
    lacks = [*(streams if kind.gather is VLP.gather else []), *(["inputs"] if kind.inputs is VLP.inputs else [])]
    lacks = sorted({*kind.__abstractmethods__, *lacks})
    if not hasattr(kind, "tunable"):
        lacks.append("tunable (parts of the names of parameters that train)")
    if lacks:
        raise TypeError(f"{kind.__name__} lacks {', '.join(lacks)}; das_gym.models.base.VLP says what each is")


def check_model(vlp: VLP) -> None:
    """Refuse a model that cannot be skipped, or trained, as it is.

    Raises:
        TypeError: its class lacks something.
        ValueError: names all that is wrong with it.
    """
    check_class(type(vlp))
    layers = getattr(vlp, "layers", ())
    wrong = []
    if not layers or not all(isinstance(layer, Layer) for layer in layers):
        wrong.append("layers is not a tuple of one Layer or more, in mask order")
    else:
        stages = sorted({layer.stage for layer in layers})
        if stages != list(range(len(stages))):
            wrong.append(f"its layers have the stages {stages}; number them 0, 1, 2, ... without a gap")
        if len({layer.name for layer in layers}) < len(layers):
            wrong.append("two layers have the same name")
        if not all(isinstance(vlp.skippable(index), SkippableLayer) for index in range(len(layers))):
            wrong.append("skippable(index) does not give a SkippableLayer for every layer")
    if not isinstance(getattr(vlp, "feature_size", None), int):
        wrong.append("feature_size (width of what pool gives) is not set to a whole number")
    if vlp.tunable and not vlp.tunable_state():
        wrong.append(f"no parameter has one of tunable={vlp.tunable} in its name: nothing could train")
    if wrong:
        raise ValueError(f"this {type(vlp).__name__} cannot be used: {'; '.join(wrong)}")
