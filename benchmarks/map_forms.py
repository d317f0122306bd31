"""What replaces removed layers best: a linear map for each, one for a run of them, or an adapter that is trained.

    python -m benchmarks.map_forms --checkpoint DIR --data-root DIR --layers 3,12,13,14,15,16,17,25,26

All forms are fitted in order, on the same hidden states of calibration examples of the train split: each reads those of the
shortened model and predicts those of the full model. `bottleneck` is the paper's skip adapter, LayerNorm, down, ReLU, up and
its input, trained by AdamW on the squared error. With half the model's width inside, it costs as much as a linear map.
`linear + bottleneck` trains one on what the linear map leaves. One map for a run replaces consecutive layers. Printed are
perplexity on the test split, MACs of all replacements for a token, and processor time of fitting.
"""

import argparse
import math
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from das_gym.adapt.shrinking.checks import as_vlm
from torch import Tensor, nn

from benchmarks.machine import make_parser
from das_gym.drawing.report import markdown_table
from das_gym.engine.evaluator import Evaluator
from das_gym.models.adapters import LinearSkipAdapter, SkipAdapter, rms_norm
from das_gym.models.base import State
from das_gym.models.transformers.linear_skips import fit_ridge, stream_tokens
from das_gym.models.transformers.model import VLM
from das_gym.problem.config import ProblemConfig
from das_gym.problem.problem import Problem, build_problem
from das_gym.problem.skip_adapters import calibration_examples, calibration_states

TOKENS = 1024
"""Of a training step."""

RATES = (1e-3, 3e-3)
"""Learning rates of which the one with the smallest error on held-out tokens is taken."""

Pair = tuple[Tensor, Tensor]
"""Hidden states before a run of layers, of the shortened model, and after it, of the full model: (tokens, width) each."""


class Both(nn.Module):
    """A linear map and a bottleneck that reads the same hidden states and corrects it."""

    def __init__(self, linear: nn.Module, bottleneck: nn.Module) -> None:
        super().__init__()
        self.linear = linear
        self.bottleneck = bottleneck

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., width) to the same shape."""
        return self.linear(x) + self.bottleneck(x) - x


def linear(pairs: Sequence[Pair], rank: int | None = None) -> nn.Module:
    """Return a linear skip adapter, by ridge regression."""
    ridge = fit_ridge([(rms_norm(before), after - before) for before, after in pairs], rank)
    width = pairs[0][0].shape[1]
    adapter = LinearSkipAdapter(width, width, rank)
    weights = {"up.weight": ridge.up.T.float(), "up.bias": ridge.bias.float()}
    if ridge.down is not None:
        weights["down.weight"] = ridge.down.T.float()
    adapter.load_state_dict(weights)
    return adapter


def bottleneck(pairs: Sequence[Pair], width: int, steps: int) -> nn.Module:
    """Return the paper's skip adapter, trained; an eighth of the batches is held out to choose the learning rate."""
    held_out = pairs[7::8]
    before = torch.cat([pair[0] for number, pair in enumerate(pairs) if number % 8 != 7])
    after = torch.cat([pair[1] for number, pair in enumerate(pairs) if number % 8 != 7])
    found = []
    for rate in RATES:
        torch.manual_seed(0)
        adapter = SkipAdapter(before.shape[1], width)
        optimizer = torch.optim.AdamW(adapter.parameters(), rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
        with torch.enable_grad():
            for _ in range(steps):
                rows = torch.randint(len(before), (TOKENS,))
                optimizer.zero_grad()
                error = (adapter(before[rows].clone()) - after[rows]).pow(2).sum(dim=1).mean()
                error.backward()
                optimizer.step()
                schedule.step()
        errors = [float((adapter(x.clone()) - y).pow(2).sum(dim=1).mean()) for x, y in held_out]
        found.append((sum(errors), adapter))
    return min(found, key=lambda pair: pair[0])[1]


def linear_and_bottleneck(pairs: Sequence[Pair], width: int, steps: int) -> nn.Module:
    """Return a linear map, and a bottleneck trained on what it leaves."""
    map_ = linear(pairs)
    return Both(map_, bottleneck([(before, before + after - map_(before)) for before, after in pairs], width, steps))


@torch.no_grad()
def replace_runs(
    vlm: VLM, states: Sequence[State], runs: Sequence[range], fit: Callable[[Sequence[Pair]], nn.Module]
) -> int:
    """Replace each run of layers by a module that `fit` returns, in order; return the MACs of a token of all of them."""
    full = short = list(states)
    starts = {run[0]: run for run in runs}
    skipped = {index for run in runs for index in run}
    weights = 0
    pairs: dict[int, list[Tensor]] = {}
    for index in range(len(vlm.layers)):
        stream = vlm.layers[index].stream
        if index in starts:
            pairs[starts[index][-1]] = [stream_tokens(state, stream, state.hidden[stream]) for state in short]
            first, at_first = index, short
        full = [step(vlm, index, state, skipped=False) for state in full]
        if index not in skipped:
            short = [step(vlm, index, state, skipped=False) for state in short]
        elif index in pairs:
            after = [stream_tokens(state, stream, state.hidden[stream]) for state in full]
            module = fit(list(zip(pairs[index], after, strict=True)))
            weights += sum(part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear))
            vlm.skippable_layer(first).skip_adapter = module.requires_grad_(False)
            for rest in range(first + 1, index + 1):
                vlm.skippable_layer(rest).skip_adapter = nn.Identity()
            short = [step(vlm, first, state, skipped=True) for state in at_first]
    return weights


def step(vlm: VLM, index: int, state: State, skipped: bool) -> State:
    """Return the state after a layer, or after what replaces it."""
    return state.with_hidden({vlm.layers[index].stream: vlm.run_layer(index, state, skipped)})


def consecutive(layers: Sequence[int]) -> list[range]:
    """Return the runs of consecutive layers."""
    runs: list[range] = []
    for layer in layers:
        if runs and runs[-1].stop == layer:
            runs[-1] = range(runs[-1].start, layer + 1)
        else:
            runs.append(range(layer, layer + 1))
    return runs


def measure(options: argparse.Namespace) -> list[list[str]]:
    """Return the rows of the table: form, MACs, perplexity, processor time."""
    config = ProblemConfig(
        model="VLM", task="text", checkpoint=options.checkpoint, data_root=options.data_root, context=options.context
    )
    problem = build_problem(config)
    vlm = as_vlm(problem)
    layers = [int(layer) for layer in options.layers.split(",")]
    mask = np.isin(np.arange(len(vlm.layers)), layers)
    count = options.examples or len(problem.splits.train)
    states = calibration_states(problem.evaluator, calibration_examples(problem.evaluator, problem.splits.train, count))
    width = vlm.feature_size
    alone = [range(layer, layer + 1) for layer in layers]
    forms: dict[str, tuple[list[range], Callable[[Sequence[Pair]], nn.Module]]] = {
        "removed": (alone, lambda pairs: nn.Identity()),
        "linear": (alone, linear),
        f"linear, rank {width // 8}": (alone, lambda pairs: linear(pairs, width // 8)),
        "linear, one for a run": (consecutive(layers), linear),
        **{
            f"bottleneck {inside}": (alone, lambda pairs, inside=inside: bottleneck(pairs, inside, options.steps))
            for inside in (width // 2, width // 8)
        },
        f"linear + bottleneck {width // 8}": (alone, lambda pairs: linear_and_bottleneck(pairs, width // 8, options.steps)),
    }
    rows = []
    for name, (runs, fit) in forms.items():
        started = time.process_time()
        macs = replace_runs(vlm, states, runs, fit)
        seconds = time.process_time() - started
        loss = masked_loss(problem, mask)
        rows.append([name, f"{macs / 1e6:.2f}", f"{math.exp(loss):.1f}", f"{seconds:.0f}"])
        print(rows[-1], flush=True)
    return rows


def masked_loss(problem: Problem, mask: np.ndarray) -> float:
    """Return the loss of the model under a mask on the test split, nats a token."""
    evaluator = Evaluator(problem.vlp, problem.head, problem.task)  # the problem's remembers the losses of masks
    return float(evaluator.losses(mask[None], problem.splits.test)[0])


def main(arguments: list[str] | None = None) -> list[list[str]]:
    """Measure and print; return the rows."""
    parser = make_parser("map_forms", __doc__)
    parser.add_argument("--checkpoint", required=True, help="folder of a text model of transformers")
    parser.add_argument("--data-root", required=True, help="texts")
    parser.add_argument("--context", type=int, default=96, help="tokens of a window of text")
    parser.add_argument("--layers", required=True, help="that are replaced, separated by commas")
    parser.add_argument("--steps", type=int, default=600, help="of training an adapter, at each learning rate")
    parser.add_argument("--examples", type=int, help="of calibration; all of the train split by default")
    rows = measure(parser.parse_args(arguments))
    print("\n".join(markdown_table(("replacement", "M MACs a token", "perplexity", "s"), rows, (0,))))
    return rows


if __name__ == "__main__":
    main()
