"""METER and ViLT compiled as one graph, at batches and text lengths that were not traced."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.torch_version import TorchVersion

from das_gym.models.base import VLP
from das_gym.models.meter.model import METER
from das_gym.models.meter.network import METERConfig
from das_gym.models.vilt.model import ViLT
from das_gym.models.vilt.network import ViLTConfig

SIZES = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_heads": 2, "vocab_size": 20}
SIZES |= {"bottleneck": 4, "skip_bottleneck": 4}


def tiny_meter() -> METER:
    encoders = {f"{part}_{what}": size for part in ("text", "vision") for what, size in (("width", 64), ("layers", 1))}
    heads = {"text_heads": 1, "vision_heads": 1}
    return METER(METERConfig(**SIZES, **encoders, **heads, fusion_layers=2, max_positions=18))


def tiny_vilt() -> ViLT:
    return ViLT(ViLTConfig(**SIZES, num_layers=3, max_positions=16))


pytestmark = pytest.mark.slow
MASKS = {METER: (True, False, False, False), ViLT: (False, True, False)}


@pytest.fixture(params=[tiny_vilt, tiny_meter], ids=["vilt", "meter"])
def vlp(request) -> VLP:
    torch.manual_seed(0)
    vlp = request.param().eval().requires_grad_(False)
    for parameter in vlp.parameters():
        nn.init.normal_(parameter, std=0.2)
    return vlp


def batch_of(vlp: VLP, rows: int, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Texts of different lengths; for ViLT, images of different sizes."""
    generator = torch.Generator().manual_seed(rows)
    ids = torch.randint(4, 20, (rows, tokens), generator=generator)
    lengths = torch.arange(tokens, tokens - rows, -1).clamp(min=2)
    image = torch.rand(rows, 3, 32, 32, generator=generator) + 0.1
    if isinstance(vlp, ViLT):
        image[-1] = F.pad(image[-1, :, :16, :24], (0, 8, 0, 16))
    return ids, (torch.arange(tokens) < lengths[:, None]).long(), image


@torch.no_grad()
@pytest.mark.skipif(TorchVersion(torch.__version__) < "2.13", reason="torch 2.11 breaks METER's graph; 2.12 was not tried")
def test_model_compiles_without_graph_breaks(vlp):
    torch.compiler.reset()
    mask: tuple[bool, ...] | None = MASKS[type(vlp)]
    if isinstance(vlp, METER):  # the one with its layers removed, the other with a mask of plain values
        vlp.prune(mask)
        mask = None
    compiled = torch.compile(vlp, fullgraph=True, backend="eager", dynamic=True)
    for rows, tokens in ((2, 8), (6, 5)):
        batch = dict(zip(("input_ids", "attention_mask", "image"), batch_of(vlp, rows, tokens), strict=True))
        torch.testing.assert_close(compiled(batch, mask), vlp(batch, mask), atol=1e-5, rtol=1e-5)
