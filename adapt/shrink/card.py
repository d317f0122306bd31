"""Write the model card of a shrunk folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from das_gym.adapt.card import TRUST, display_name, front_matter, loading_example, model_card
from das_gym.adapt.shrink.measuring import Measured
from das_gym.adapt.shrink.recovery import RecoveryConfig
from das_gym.adapt.shrink.report import table_of
from das_gym.adapt.shrink.verifying import Verification, has_remote_code

from das_gym.models.transformers.loading import auto_class
from das_gym.models.transformers.model import VLM
from das_gym.models.transformers.stack import IMAGE
from das_gym.models.transformers.units import ATTENTION, MLP

ADDED_CODE = (
    "The folder holds the code of its model, which is not one of transformers' own. Without `trust_remote_code=True`, "
    "loading fails on purpose (no file named model.safetensors): transformers' class would fill what it misses with noise."
)


def shrunk_card(
    full: VLM,
    mask: Sequence[bool],
    source: Path,
    origin: str,
    recovery: RecoveryConfig,
    trained: tuple[int, int],
    data: str,
    measured: Measured,
    verified: Verification,
    command: str,
) -> str:
    """Return the text of the card."""
    name, auto = display_name(source), auto_class(full.model.config).__name__
    layers, parts = len(full.stack.layers), full.removed_parts(mask)
    removed = [("decoder layers", full.removed_layers(mask), layers)]
    for kind, what in ((ATTENTION, "attentions"), (MLP, "MLPs")):
        removed.append((f"{what} of decoder layers", [place for place, part in parts.items() if part == kind], layers))
    if full.tower is not None:
        removed.append(("layers of its vision tower", full.removed_layers(mask, IMAGE), len(full.tower.stack.layers)))
    removed = [each for each in removed if each[1]]
    counts = ", ".join(f"{len(places)} of {count} {what}" for what, places, count in removed)
    which = ", ".join(f"{what} {', '.join(map(str, places))}" for what, places, _ in removed)
    adds_code = bool(parts) or (recovery.method is not None and recovery.method.adds_code)
    trusted = TRUST if has_remote_code(full) else ""
    compared = "full model with these layers skipped"
    if recovery.method is not None:
        compared = "recovered model in memory, run layer by layer"
    return model_card(
        front_matter(source, auto, ("pruned",)),
        f"{name}, without {counts}",
        [
            f"Made from `{name}` by das_gym: {which} (counted from 0) were deleted ({origin}). "
            f"{_describe_training(recovery, trained, full.feature_size)}",
            f"Command: `{command}`",
            *([ADDED_CODE] if adds_code else []),
        ],
        loading_example(auto, TRUST if adds_code else trusted, trusted),
        table_of(measured),
        f"Scored on {data} with greedy decoding. Other abilities of the model were not measured. Checked when it was saved: "
        f"loaded by transformers alone, its logits equal those of the {compared} (relative difference "
        f"{verified.logits_difference:.1e} or less), and so does the text that it generates {', '.join(verified.ways)}.",
    )


def _describe_training(config: RecoveryConfig, trained: tuple[int, int], width: int) -> str:
    if config.method is None:
        return "Nothing was trained."
    parameters, examples = trained
    return (
        f"{config.method.describe_recovery(width)} ({parameters:,} parameters) trained for {config.steps} steps of "
        f"{min(config.batch_size, examples)} examples, on {examples:,} training examples. The loss is "
        f"{config.distillation:g} KL(full || this) + {config.cross_entropy:g} cross-entropy."
    )
