"""Which models the suite is made of: a list that a seed draws, in the order in which they are made."""

from dataclasses import dataclass

import numpy as np

from benchmarks.make_suite.models import SuiteModel

SEED = 2026
NOISE = (0.0, 0.1, 0.2, 0.3)
STEPS = (30, 60, 100)
DECODER_STEPS = (150, 300, 500)
"""Decoders have no adapters to make up for lost layers, and are trained longer."""

MAX_SKIPPED = (0, 2, 4)


@dataclass(frozen=True)
class Kind:
    """What models of the suite are made from.

    Attributes:
        label: In their names.
        model, units, checkpoint: As in `SuiteModel`.
        layers: Of each list of the bundled model.
        kept: How many of them a model of the suite keeps, each as likely.
    """

    label: str
    model: str
    layers: int
    kept: tuple[int, ...]
    units: str | None = None
    checkpoint: str | None = None


METER = Kind("meter", "METER", 6, (4, 4, 5))
VILT = Kind("vilt", "ViLT", 12, (7, 8, 9))
SMOLVLM = Kind("vlm", "VLM", 12, (8, 9), "layers")
SMOLVLM_HALVES = Kind("vlm-sublayers", "VLM", 12, (5,), "sublayers")
LLAVA = Kind("llava", "VLM", 24, (9, 10), "layers", "llava_mini")
LLAVA_HALVES = Kind("llava-sublayers", "VLM", 24, (5,), "sublayers", "llava_mini")

PARTS = (
    ("train", ((METER, "vqa"), (VILT, "vqa")) * 10),
    (
        "test",
        (
            (SMOLVLM, "answering"),
            (SMOLVLM, "answering"),
            (SMOLVLM_HALVES, "answering"),
            (METER, "nlvr2"),
            (VILT, "nlvr2"),
            (METER, "retrieval"),
        ),
    ),
    ("valid", ((METER, "vqa"), (VILT, "vqa"), (SMOLVLM, "answering"))),
    ("train", ((SMOLVLM, "answering"), (SMOLVLM_HALVES, "answering")) * 3),
    ("test", ((LLAVA, "answering"), (LLAVA_HALVES, "answering"), (LLAVA, "answering"))),
    ("test", ((METER, "nlvr2"), (VILT, "retrieval"), (LLAVA, "answering"), (METER, "retrieval"))),
)
"""Split, and kind and task of each model: none of `test` is in `train`, and neither are the tasks `nlvr2` and `retrieval`,
nor models of LLaVA.

They are drawn in this order: what is added at the end leaves the rest as it was.
"""


def suite_models(seed: int = SEED) -> list[SuiteModel]:
    """All models, in the order of `PARTS`; the same for the same seed."""
    rng = np.random.default_rng(seed)
    found: list[SuiteModel] = []
    for split, kinds in PARTS:
        for kind, task in kinds:
            number = sum(spec.split == split for spec in found)
            found.append(_draw(rng, split, f"{split}-{number:02d}-{kind.label}-{task}", kind, task))
    return found


def _draw(rng: np.random.Generator, split: str, name: str, kind: Kind, task: str) -> SuiteModel:
    count = int(rng.choice(kind.kept))
    lists = 2 if kind.model == "METER" else 1
    kept = tuple(_places(rng, kind.layers, count, first=lists == 1) for _ in range(lists))
    decoder = kind.model == "VLM"
    own = int(rng.integers(2**31))
    return SuiteModel(
        name=name,
        split=split,
        model=kind.model,
        task=task,
        kept=kept,
        seed=own,
        noise=float(rng.choice(NOISE)) / (4 if decoder else 1),
        skip_adapters=bool(rng.random() < 0.5),
        steps=DECODER_STEPS[own % len(DECODER_STEPS)] if decoder else int(rng.choice(STEPS)),
        max_skipped=int(rng.choice(MAX_SKIPPED)),
        units=kind.units,
        checkpoint=kind.checkpoint,
    )


def _places(rng: np.random.Generator, whole: int, count: int, first: bool) -> tuple[int, ...]:
    """`count` of `whole` layers in their order; with `first` the first is among them, without which none works."""
    chosen = rng.choice(np.arange(1, whole), count - 1, replace=False) if first else rng.choice(whole, count, replace=False)
    return tuple(sorted([0, *chosen.tolist()] if first else chosen.tolist()))
