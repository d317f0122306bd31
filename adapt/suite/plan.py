"""Which models the suite is made of: a list that a seed draws, in the order in which they are made."""

from __future__ import annotations

import numpy as np
from das_gym.adapt.suite.models import SuiteModel

SEED = 2026
NOISE = (0.0, 0.1, 0.2, 0.3)
STEPS = (30, 60, 100)
MAX_SKIPPED = (0, 2, 4)

PARTS = (
    ("train", (("METER", "vqa"), ("ViLT", "vqa")) * 10),
    (
        "test",
        (
            ("VLM", "answering"),
            ("VLM", "answering"),
            ("VLM sublayers", "answering"),
            ("METER", "nlvr2"),
            ("ViLT", "nlvr2"),
            ("METER", "retrieval"),
        ),
    ),
    ("valid", (("METER", "vqa"), ("ViLT", "vqa"), ("VLM", "answering"))),
    ("train", (("VLM", "answering"), ("VLM sublayers", "answering")) * 5),
)
"""Split, and model and task of each: no model of `test` is in `train`, neither are its tasks `nlvr2` and `retrieval`.

They are drawn in this order: what is added at the end leaves the rest as it was.
"""

WHOLE = {"METER": 6, "ViLT": 12, "VLM": 12}
"""Layers (of each list) of the bundled models."""

NEW = {"METER": (4, 4, 5), "ViLT": (7, 8, 9), "VLM": (8, 9), "VLM sublayers": (5,)}
"""How many of them a model of the suite keeps, each as likely."""


def suite_models(seed: int = SEED) -> list[SuiteModel]:
    """All models, in the order of `PARTS`; the same for the same seed."""
    rng, found = np.random.default_rng(seed), []
    for split, kinds in PARTS:
        for model, task in kinds:
            number = sum(spec.split == split for spec in found)
            found.append(_draw(rng, split, f"{split}-{number:02d}", model, task))
    return found


def _draw(rng: np.random.Generator, split: str, name: str, kind: str, task: str) -> SuiteModel:
    model, _, units = kind.partition(" ")
    count = int(rng.choice(NEW[kind]))
    lists = 2 if model == "METER" else 1
    kept = tuple(_places(rng, WHOLE[model], count, first=lists == 1) for _ in range(lists))
    decoder = model == "VLM"
    return SuiteModel(
        name=f"{name}-{kind.replace(' ', '-').lower()}-{task}",
        split=split,
        model=model,
        task=task,
        kept=kept,
        seed=int(rng.integers(2**31)),
        noise=float(rng.choice(NOISE)) / (4 if decoder else 1),
        skip_adapters=bool(rng.random() < 0.5),
        steps=0 if decoder else int(rng.choice(STEPS)),
        max_skipped=int(rng.choice(MAX_SKIPPED)),
        units=(units or "layers") if decoder else None,
    )


def _places(rng: np.random.Generator, whole: int, count: int, first: bool) -> tuple[int, ...]:
    """`count` of `whole` layers in their order; with `first` the first is among them, without which none works."""
    chosen = rng.choice(np.arange(1, whole), count - 1, replace=False) if first else rng.choice(whole, count, replace=False)
    return tuple(sorted([0, *chosen.tolist()] if first else chosen.tolist()))
