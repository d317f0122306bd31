"""Linear skip adapters in closed form against a trained supernet, as rewards for METER-mini and ViLT-mini.

    python -m benchmarks.closed_form                       METER-mini on VQA
    python -m benchmarks.closed_form --model ViLT          fine-tunes its baseline first
    python -m benchmarks.closed_form --seeds 2             and fine-tunes the mask that each reward prefers

The fine-tuned baseline gets a linear map `x + W rms_norm(x) + b` for each layer, a ridge regression on hidden states of the
train split (`das_gym.models.transformers.linear_skips.fit_ridge`): no supernet is trained. All masks of 4 layers are scored
with the maps, with the layers left out, and with the bundled supernet. Printed are Spearman's correlations with the loss of
the supernet, the losses of the best masks, and times.
"""

import argparse
import itertools
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from das_gym.adapt.evaluate import evaluate
from das_gym.adapt.finetuning import finetune, load_reference, load_start, new_subnet, with_new_head, without_layers
from das_gym.adapt.settings import TrainingConfig
from das_gym.adapt.step_loss import resolve_defaults
from torch import nn

from benchmarks.fidelity import spearman_with_interval
from benchmarks.machine import make_parser
from das_gym.data.splits import Splits
from das_gym.drawing.report import markdown_table
from das_gym.models.adapters import LinearSkipAdapter, rms_norm
from das_gym.models.base import VLP
from das_gym.models.transformers.linear_skips import Ridge, fit_ridge
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import AdaptedModel, load_backbone, shuffled
from das_gym.problem.problem import load_problem, problem_from_model

SKIPPED = 4
BATCH = 32


def train_baseline(config: ProblemConfig, steps: int) -> AdaptedModel:
    """Return the fine-tuned baseline: bundled if its settings are the defaults, else trained."""
    start = load_start(config)
    baseline = without_layers(start.model, np.zeros(len(start.model.backbone.vlp.layers), dtype=bool), adapters=False)
    training, _ = resolve_defaults(TrainingConfig(steps=steps), baseline)
    if not load_reference(baseline, config, training, "baseline"):
        finetune(baseline, start.splits, training, "fine-tuning the baseline")
    baseline.backbone.vlp.freeze()
    return baseline


@torch.no_grad()
def fit_maps(model: AdaptedModel, examples: Sequence[object]) -> list[Ridge]:
    """Return the map of each layer, fitted on the hidden states of the full model."""
    vlp = model.backbone.vlp
    kept = np.zeros(len(vlp.layers), dtype=bool)
    pairs: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in vlp.layers]
    for first in range(0, len(examples), BATCH):
        batch = model.backbone.processor(model.task.pairs(examples[first : first + BATCH]), None)
        state = vlp.embed(vlp.encode(batch))
        for stage, indices in enumerate(vlp.stages):
            for index in indices:
                stream = vlp.layers[index].stream
                before = state.hidden[stream]
                after = vlp.run_layer(index, state, skipped=False)
                rows, real = vlp.split_rows(state, stream, torch.cat((rms_norm(before), after - before), dim=-1))
                tokens = rows.flatten(0, 1) if real is None else rows[real[:, 0, -1].bool()]
                pairs[index].append(tuple(tokens.chunk(2, dim=-1)))  # type: ignore[arg-type]
            if stage < len(vlp.stages) - 1:
                state = vlp.advance(state, stage, kept)
    return [fit_ridge(each, what=layer.name) for each, layer in zip(pairs, vlp.layers, strict=True)]


def put_maps(vlp: VLP, maps: Sequence[Ridge] | None) -> None:
    """Let skipped layers run these maps; None leaves the layers out."""
    for index in range(len(vlp.layers)):
        adapter: nn.Module = nn.Identity()
        if maps is not None:
            width, out = maps[index].up.shape
            adapter = LinearSkipAdapter(width, out)
            weights = {"up.weight": maps[index].up.T.float(), "up.bias": maps[index].bias.float()}
            adapter.load_state_dict(weights)
        layer = vlp.skippable_layer(index)
        layer.skip_adapter = adapter.requires_grad_(False)
        layer.removed = {}
    vlp.pruned_mask = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = make_parser("closed_form", __doc__)
    parser.add_argument("--model", default="METER", choices=("METER", "ViLT"))
    parser.add_argument("--task", default="vqa", choices=("vqa", "nlvr2"))
    parser.add_argument("--steps", type=int, default=300, help="of fine-tuning")
    parser.add_argument("--calibration-examples", type=int, default=512)
    parser.add_argument("--examples", type=int, default=500, help="of the reward split")
    parser.add_argument("--seeds", type=int, default=0, help="fine-tunings of the mask that each reward prefers")
    parser.add_argument("--start", default="new", choices=("new", "supernet"), help="adapters that fine-tuning starts from")
    compare(parser.parse_args(arguments))


def compare(options: argparse.Namespace) -> None:
    """Score all masks in three ways, and print the tables."""
    torch.set_num_threads(1)
    config = ProblemConfig(model=options.model, task=options.task)
    baseline = train_baseline(config, options.steps)
    supernet = load_problem(config)
    splits = supernet.splits
    began = time.process_time()
    maps = fit_maps(baseline, shuffled(baseline.task, splits.train, options.calibration_examples))
    print(f"{len(maps)} maps fitted in {time.process_time() - began:.1f} s of processor time")
    layers = np.arange(len(maps))
    masks = np.array([np.isin(layers, each) for each in ((), *itertools.combinations(layers, SKIPPED))])
    losses = {"supernet": supernet.evaluator.losses(masks, shuffled(supernet.task, splits.reward, options.examples))}
    reward = shuffled(baseline.task, splits.reward, options.examples)
    for name, given in (("linear maps", maps), ("left out", None)):
        put_maps(baseline.backbone.vlp, given)
        losses[name] = problem_from_model(baseline, splits, config).evaluator.losses(masks, reward)
    rows = []
    for name, found in losses.items():
        preferred = 1 + found[1:].argmin()
        best = masks[preferred]
        regret = losses["supernet"][preferred] - losses["supernet"][1:].min()
        tuned = tuned_scores(config, splits, best, options)
        skipped = " ".join(map(str, np.flatnonzero(best)))
        agreement = spearman_with_interval(found[1:], losses["supernet"][1:])
        rows.append([name, f"{found[0]:.4f}", f"{found[preferred]:.4f}", skipped, agreement, f"{regret:.4f}", tuned])
    head = ("skipped layers", "full model", "best mask", "it skips", "Spearman", "regret in the supernet", "fine-tuned, %")
    print(*markdown_table(head, rows, (0, 3)), sep="\n")


def tuned_scores(config: ProblemConfig, splits: Splits[Any], mask: np.ndarray, options: argparse.Namespace) -> str:
    """Return test metrics, in %, of the subnet of a mask that is fine-tuned, for each seed."""
    found = []
    for seed in range(options.seeds):
        torch.manual_seed(seed)
        if options.start == "supernet":
            subnet = new_subnet(config, mask)
        else:
            subnet = with_new_head(load_backbone(config), config.task, splits)
            subnet.backbone.vlp.prune(mask)
        training, _ = resolve_defaults(TrainingConfig(steps=options.steps, seed=seed), subnet)
        finetune(subnet, splits, training, "fine-tuning a subnet")
        found.append(f"{100 * evaluate(subnet, splits.test, 'evaluating').metric:.1f}")
    return ", ".join(found)


if __name__ == "__main__":
    main()
