"""The models that can be pre-trained to answer in words; a new one is a file beside these and a line here."""

from benchmarks.pretrain.vlm.family import AnsweringModel
from benchmarks.pretrain.vlm.llava import LLAVA_MINI
from benchmarks.pretrain.vlm.smolvlm import SMOLVLM_MINI

ANSWERING_MODELS: dict[str, AnsweringModel] = {"SmolVLM": SMOLVLM_MINI, "LLaVA": LLAVA_MINI}
"""By name."""
