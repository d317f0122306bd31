"""Negative log-likelihoods of tokens, and their sums and means by prompt, for tasks that score a model's own vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812


def token_nats(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the negative log-likelihood of each token, (tokens,), in nats.

    Args:
        logits: (tokens, vocabulary).
        labels: (tokens,) int64, the tokens that follow.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()  # half precision loses small differences
    return F.cross_entropy(logits, labels, reduction="none")


def sum_by(values: Tensor, groups: Tensor, count: int) -> Tensor:
    """Return the (count,) sums of (tokens,) values by group, (tokens,) int64."""
    return values.new_zeros(count).index_add(0, groups, values)


def mean_by(values: Tensor, groups: Tensor, count: int) -> Tensor:
    """Return the (count,) means of (tokens,) values by group, (tokens,) int64; every group has a token."""
    return sum_by(values, groups, count) / torch.bincount(groups, minlength=count)
