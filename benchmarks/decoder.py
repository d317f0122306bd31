"""How much faster the engine evaluates masks of a causal vision-language model than plain forwards, as ratios of one run.

    python -m benchmarks.decoder                          12 layers, 577 image positions, 4 images with 5 questions each
    python -m benchmarks.decoder --hidden 512
    python -m benchmarks.decoder --device cuda --dtype bfloat16 --hidden 4096 --layers 32 --heads 32   as LLaVA-1.5-7B
    python -m benchmarks.decoder --checkpoint DIR         the model in a folder, on bundled questions, one turn

Without a checkpoint, the model has LLaVA's architecture and random weights: a CLIP tower at 336 px and a Llama decoder.
Rivals:
  (a) plain    the model's own forward for each mask and question, image included, without the skipped layers
  (b) batched  one forward of all questions for each mask, with cached outputs of the vision tower
Both compute logits at the answers' tokens only. `--plain` of the masks are timed, spread evenly over the set, and their mean
time is multiplied by the size of the set. The sets: a turn of 16 random masks with four skipped layers (after a first turn,
like every turn of a search but the first), all masks with four, all masks. Losses of the timed masks are compared.
The last line is the processor time of the turn while glibc keeps freed memory, as in commands, against its own thresholds.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from das_gym.adapt.shrinking.checks import as_vlm
from torch import Tensor

from benchmarks.harness import llava_config, make_parser, memory_mib, restart_peak
from das_gym.data.images import NoiseImage
from das_gym.engine.evaluator import Evaluator
from das_gym.models.inputs import Prompt
from das_gym.models.transformers import stack
from das_gym.models.transformers.inputs import PromptProcessor
from das_gym.models.transformers.model import VLM
from das_gym.models.transformers.probing import probe_capabilities
from das_gym.models.transformers.tower import image_features
from das_gym.problem.config import ProblemConfig
from das_gym.problem.mask_space import every_mask
from das_gym.problem.problem import build_problem
from das_gym.processes import keep_freed_memory
from das_gym.tasks.answering.examples import AnswerExample
from das_gym.tasks.answering.task import AnsweringTask

SIDE, PATCH, SKIPPED = 336, 14, 4
TURN = 16
TRUNK_BYTES = 2**30
"""Memory for hidden states of the full model."""


def build(options: argparse.Namespace) -> tuple[VLM, PromptProcessor]:
    """Build a model with random weights and its processor."""
    import transformers as t
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: n for n, word in enumerate(("<pad>", "<s>", "</s>", "<image>", *map(str, range(2000))))}
    inner = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = t.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
    )
    images = t.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    processor = t.LlavaProcessor(
        images, tokenizer, patch_size=PATCH, vision_feature_select_strategy="full", num_additional_image_tokens=1
    )
    decoder = (options.hidden, options.layers, options.heads)
    marks = {"image_token_id": words["<image>"], "vision_feature_select_strategy": "full"}
    config = llava_config(decoder, (256, 6, 4), len(words), **marks)
    torch.manual_seed(0)
    dtype = getattr(torch, options.dtype)
    with torch.device(options.device):
        torch.set_default_dtype(dtype)
        model = t.LlavaForConditionalGeneration(config).eval()
        torch.set_default_dtype(torch.float32)
    plain = VLM(model)
    traits = probe_capabilities(model, plain.wrap_processor(processor))
    vlm = VLM(model, capabilities=traits)
    vlm.freeze()
    return vlm, vlm.wrap_processor(processor)


def questions(images: int, each: int) -> list[AnswerExample]:
    """Make questions of 12 to 16 words with answers of one to three words, on images of noise."""
    rng = np.random.default_rng(0)
    text = lambda low, high: " ".join(map(str, rng.integers(0, 2000, rng.integers(low, high + 1))))  # noqa: E731
    noise = [(NoiseImage(number, SIDE, SIDE),) for number in range(images)]
    return [AnswerExample(f"{n} {q}", noise[n], text(12, 16), text(1, 3)) for n in range(images) for q in range(each)]


class PlainForwards:
    """Plain forwards of a model on some questions."""

    def __init__(self, vlm: VLM, processor: PromptProcessor, examples: Sequence[AnswerExample]) -> None:
        self.vlm = vlm
        self.task = AnsweringTask(processor)  # type: ignore[arg-type]
        self.prompts: list[Prompt] = self.task.pairs(examples)
        self.encodings = [processor.encode(prompt, pixels=True) for prompt in self.prompts]
        self.given = [image_features(vlm.model, vlm.to_device(e.pixels | e.sizes)) for e in self.encodings]
        self.targets = {name: t.to(vlm.device) for name, t in self.task.targets(examples).items()}
        self.head = vlm.language_head()

    def plain(self, mask: np.ndarray) -> float:
        """Return the mean loss of one forward per question (a)."""
        logits = [self._answers([e], ()) for e in self._skipping(mask, self.encodings)]
        return self._loss(torch.cat(logits))

    def batched(self, mask: np.ndarray) -> float:
        """Return the mean loss of one batched forward (b)."""
        logits = [self._answers(all_of, self.given) for all_of in self._skipping(mask, [self.encodings])]
        return self._loss(torch.cat(logits))

    def _skipping(self, mask: np.ndarray, items: Sequence[Any]) -> Any:
        layers = [self.vlm.stack.layers[place] for place, skipped in zip(self.vlm.places, mask, strict=True) if skipped]
        with stack.replace_forwards({layer: lambda hidden, *_, **__: hidden for layer in layers}):
            yield from items

    def _answers(self, encodings: Sequence[Any], given: Sequence[Any]) -> Tensor:
        hidden = self.vlm.run(encodings, given).last_hidden_state
        rows = [hidden[row, e.answer - 1 : len(e.ids) - 1] for row, e in enumerate(encodings)]
        return self.head(torch.cat(rows))

    def _loss(self, logits: Tensor) -> float:
        return float(self.task.losses(logits, self.targets).double().mean())


def timed(run: Callable[[], Any], device: str) -> tuple[float, Any]:
    """Return the seconds and the result of a call."""
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    result = run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started, result


def load(options: argparse.Namespace) -> tuple[VLM, PromptProcessor, list[AnswerExample]]:
    """Return model, processor and questions: those of a checkpoint with bundled data, or random ones."""
    if options.checkpoint is None:
        return *build(options), questions(options.images, options.questions)
    settings = {name: getattr(options, name) for name in ("checkpoint", "device", "dtype")}
    problem = build_problem(ProblemConfig("VLM", "answering", **settings))
    return as_vlm(problem), problem.task.processor, problem.splits.reward[: options.images * options.questions]


def mask_sets(layers: int, turn_only: bool) -> dict[str, np.ndarray]:
    """Return the sets of masks by name, the turn first."""
    fours = every_mask(layers, SKIPPED)
    turn = fours[np.random.default_rng(1).choice(len(fours), TURN, replace=False)]
    if turn_only:
        return {"turn of 16": turn}
    sets = {"turn of 16": turn, f"all {len(fours)} of four": fours}
    if layers <= 12:
        sets[f"all {2**layers:,}"] = every_mask(layers)
    return sets


@torch.inference_mode()
def measure(options: argparse.Namespace) -> None:
    """Compare the engine with both rivals on every set of masks."""
    vlm, processor, examples = load(options)
    rivals = PlainForwards(vlm, processor, examples)
    images = len({example.images for example in examples})
    print(f"{len(examples)} questions on {images} images, {len(rivals.encodings[0].ids)} tokens in the first", flush=True)
    for name, masks in mask_sets(len(vlm.places), options.checkpoint is not None).items():
        sample = masks[np.linspace(0, len(masks) - 1, min(options.plain, len(masks))).astype(int)]
        times: dict[str, list[float]] = {"plain": [], "batched": []}
        losses = []
        rivals.batched(sample[0])  # warm
        for mask in sample:
            for kind in times:
                seconds, loss = timed(lambda kind=kind, mask=mask: getattr(rivals, kind)(mask), options.device)
                times[kind].append(seconds)
                losses.append(loss)
        engine = Evaluator(vlm, rivals.head, rivals.task, batch_size=len(examples), trunk_bytes=TRUNK_BYTES)
        if name.startswith("turn"):  # the first turn of a search pays for the images
            engine.evaluate(np.roll(masks, 1, axis=1), examples)
        restart_peak()
        before = memory_mib("VmRSS")
        engine_seconds, scores = timed(lambda engine=engine, masks=masks: engine.evaluate(masks, examples), options.device)
        peak = memory_mib("VmHWM") - before
        at = [int(np.flatnonzero((masks == mask).all(axis=1))[0]) for mask in sample for _ in times]
        difference = float(np.abs(scores.losses[at] - np.array(losses)).max())
        plain, batched = (statistics.mean(each) * len(masks) / engine_seconds for each in times.values())
        print(
            f"{name:14s} engine {engine_seconds:8.2f} s; {plain:5.1f} times faster than (a) plain, "
            f"{batched:5.1f} than (b) batched; losses differ by at most {difference:.1e}; {peak:,.0f} MiB more at most",
            flush=True,
        )
        if name.startswith("turn"):
            kept = engine, masks
    compare_kept_memory(*kept, examples)


def compare_kept_memory(engine: Evaluator, masks: np.ndarray, examples: Sequence[Any], turns: int = 3) -> None:
    """Print the processor time of a turn after `keep_freed_memory`, as a ratio to the time before."""
    seconds = []
    for prepare in (lambda: None, keep_freed_memory):
        prepare()
        each = []
        for _ in range(turns):
            engine.forget()
            started = time.process_time()
            engine.evaluate(masks, examples)
            each.append(time.process_time() - started)
        seconds.append(min(each))
    print(f"freed memory kept: {seconds[1]:.2f} s of processor time, {seconds[1] / seconds[0]:.2f} of {seconds[0]:.2f} s")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = make_parser("decoder", __doc__)
    for name, value in {"hidden": 256, "layers": 12, "heads": 8, "images": 4, "questions": 5, "plain": 6}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--checkpoint", help="folder of a model of transformers that answers questions about images")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    measure(parser.parse_args(arguments))


if __name__ == "__main__":
    main()
