"""A METER subnet in transformers' conventions."""

from __future__ import annotations

from das_gym.models.meter.inputs import CLIP_MEAN, CLIP_STD
from das_gym.models.meter.model import METER, FusionLayer
from das_gym.models.portable import NOTHING, Portable, PortableHead, layer_kinds, parallel_bottleneck, plain_names

CODE = "das_gym.models.meter.modeling_meter_subnet"


def to_portable(vlp: METER, head: PortableHead) -> Portable:
    """A pruned METER and its head, for the code of `modeling_meter_subnet`."""
    config, kinds, file = vlp.config, layer_kinds(vlp), CODE.rpartition(".")[2]
    return Portable(
        config={
            "model_type": "meter_subnet",
            "architectures": ["MeterSubnet"],
            "auto_map": {
                "AutoConfig": f"{file}.MeterSubnetConfig",
                "AutoModel": f"{file}.MeterSubnet",
                "AutoModelForVisualQuestionAnswering": f"{file}.MeterSubnet",
            },
            "vision_config": vlp.image_encoder.config.to_diff_dict(),
            "text_config": vlp.text_encoder.config.to_diff_dict(),
            "hidden_size": config.hidden_size,
            "num_attention_heads": config.num_heads,
            "text_layers": kinds[: config.fusion_layers],
            "image_layers": kinds[config.fusion_layers :],
            "bottleneck": parallel_bottleneck(vlp, config.bottleneck),
            "skip_bottleneck": 0 if NOTHING in kinds else config.skip_bottleneck,
            "num_images": head.num_images,
            "head_width": head.width,
            "hidden_dropout_prob": config.dropout,
            "layer_norm_eps": FusionLayer.norm_eps,
        },
        tensors=plain_names(vlp.state_dict()) | {f"classifier.{name}": t for name, t in head.tensors.items()},
        image_processor={
            "image_processor_type": "MeterSubnetImageProcessor",
            "auto_map": {"AutoImageProcessor": f"{file}.MeterSubnetImageProcessor"},
            "size": config.image_size,
            "image_mean": CLIP_MEAN,
            "image_std": CLIP_STD,
        },
        model=f"{CODE}:MeterSubnet",
        code=CODE,
    )
