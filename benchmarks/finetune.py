"""Steps per second of fine-tuning with cached outputs of the frozen encoders, and with the encoders run at every step.

    python -m benchmarks.finetune                        METER-base with random weights, 384 px, 40 text tokens
    python -m benchmarks.finetune --size mini --steps 40

Both train METER's adapters, poolers, token types and head on the same examples, in the same order, from the same weights.
The first epoch, which computes the outputs in both cases, is not timed. The largest difference of the trained weights is
printed. It is measured with all layers, and without the two text and two image layers that DAS skips. Two to ten minutes
on two cores.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from das_gym.adapt.step_loss import StepLoss
from das_gym.adapt.training import Trainer, adamw, learning_rate_factor

from benchmarks.machine import make_parser
from benchmarks.models import DAS, EXAMPLES, Subject, load_subject
from das_gym.problem.loading import AdaptedModel, Backbone

BATCH = 4


def trained(
    subject: Subject, mask: np.ndarray, reuse: bool, batch_size: int, steps: int
) -> tuple[dict[str, torch.Tensor], float]:
    """Return the trained tensors by name, and the steps per second after the first epoch."""
    vlp = copy.deepcopy(subject.vlp)
    head = copy.deepcopy(subject.head).train().requires_grad_(True)
    vlp.prune(mask)
    vlp.freeze()
    model = AdaptedModel(Backbone(vlp, subject.task.processor, ""), head, subject.task)
    step_loss = StepLoss(model, subject.examples, batch_size, seed=0)
    step_loss.caches_encoders = reuse
    tunable = [p for p in vlp.parameters() if p.requires_grad]
    first = len(subject.examples) // batch_size
    schedule = partial(learning_rate_factor, steps=first + steps, warmup=0.1)
    optimizer = adamw(((tunable, 1e-4), (list(head.parameters()), 1e-3)), 0.01)
    trainer = Trainer({"vlp": vlp, "head": head}, optimizer, first, schedule)
    trainer.run(step_loss.parts, "the first epoch")
    trainer.steps = first + steps
    started = time.perf_counter()
    trainer.run(step_loss.parts, "cached" if reuse else "uncached")
    seconds = time.perf_counter() - started
    found = {name: p.detach() for name, p in (*vlp.named_parameters(), *head.named_parameters()) if p.requires_grad}
    return found, steps / seconds


def compare(subject: Subject, skipped: Sequence[str], batch_size: int, steps: int) -> dict[str, float]:
    """Train with and without the cache: return steps per second of both, and by how much a weight differs at most."""
    mask = np.array([layer.name in skipped for layer in subject.vlp.layers])
    kept, fast = trained(subject, mask, True, batch_size, steps)
    run, slow = trained(subject, mask, False, batch_size, steps)
    apart = max(float((kept[name] - run[name]).abs().max()) for name in run)
    return {"cached": fast, "uncached": slow, "largest_difference": apart}


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = make_parser("finetune", __doc__)
    parser.add_argument("--size", choices=EXAMPLES, default="base")
    parser.add_argument("--steps", type=int, default=6, help="after the first epoch")
    options = parser.parse_args(arguments)
    subject = load_subject(options.size, 2 * BATCH)
    for skipped in ((), DAS):
        record = compare(subject, skipped, BATCH, options.steps)
        model = f"without {', '.join(skipped)}" if skipped else "all layers"
        print(
            f"METER-{options.size}, {model}, {BATCH} examples a step: {record['cached']:.2f} steps per second with cached "
            f"encoder outputs, {record['uncached']:.2f} without: {record['cached'] / record['uncached']:.2f} times as many; "
            f"weights differ by {record['largest_difference']:.1e} at most",
            flush=True,
        )


if __name__ == "__main__":
    main()
