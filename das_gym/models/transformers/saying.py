"""What a subnet answers in its own words, by transformers' `generate`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from das_gym.models.transformers.generation import generate_tokens
from das_gym.models.transformers.inputs import PromptProcessor
from das_gym.models.transformers.model import VLM
from das_gym.models.transformers.stand_ins import as_saved


def say(subnet: VLM, processor: PromptProcessor, prompts: Sequence[Any], title: str, max_new_tokens: int) -> list[str]:
    """As `das_gym.registration.ModelEntry.say`; a subnet answers as it would from its exported folder.

    Raises:
        ValueError: training left something in it that no folder says.
    """
    saved = as_saved(subnet) if subnet.tunable else subnet
    said = generate_tokens(saved, processor, prompts, title, max_new_tokens=max_new_tokens)
    cut = sum(len(tokens) == max_new_tokens for tokens in said)
    if cut:
        warnings.warn(f"{cut} of {len(said)} answers are cut at max_new_tokens={max_new_tokens}: pass more", stacklevel=2)
    return [processor.decode(tokens) for tokens in said]
