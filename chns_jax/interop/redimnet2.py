"""ReDimNet2 in PyTorch: the names of its tensors, and what they and its settings tell.

wespeaker and its authors use the same names. A stage is a list of layers that are known by their
positions: weights of the maps before it, a reshaping, the strided convolution, residual blocks, a
narrower 1 x 1 convolution if the blocks were wider, a reshaping, the time context, the repetition
of frames, and group normalisation.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from chns_jax.common.errors import UserError
from chns_jax.config import ReDimNet2

FIRST_BLOCK = 3  # its position in a stage
STEM = {"stem": "stem.0", "stem_norm": "stem.1", "stem_group_norm": "stem_gnorm"}
OF_BACKBONE = (*STEM, "fin_wght1d", "head")
CONTEXT = {
    "reduce": "red_dim_conv.0",
    "reduce_norm": "red_dim_conv.1",
    "depthwise": "tcm.{}.dwconvs.0",
    "norm": "tcm.{}.norm",
    "pointwise": "tcm.{}.pwconv1",
    "attention": "tcm.4",
    "expand": "exp_dim_conv",
}
# What the authors' code may be told, and the shapes of the tensors do not show, as it is here.
ONLY = {
    "causal": ("none", False),
    "feat_type": ("tf", "tf_mel"),
    "hop_length": (160,),
    "pooling_func": ("ASTP",),
    "pad_right_samples": (None,),
    "before_pool_offset": (None,),
    "spec_params": (
        {"do_spec_aug": False, "do_preemph": True, "norm_signal": True},
        {"do_preemph": True, "norm_signal": True},
    ),
}


def torch_name(modules: list[str], leaf: str, options: ReDimNet2) -> str:
    """The name of the tensor `leaf` of a module, given by its names in Flax."""
    first, *inner = modules
    if first in OF_BACKBONE:
        return ".".join(["backbone", STEM.get(first, first), *inner, leaf])
    if not first.startswith("stage"):
        return ".".join([*modules, leaf])
    number = int(first.removeprefix("stage"))
    part, *inner = inner
    after_blocks = FIRST_BLOCK + options.blocks[number]
    context = _context(options.blocks[number], options.expansions[number] != 1)
    if part.startswith("blocks_"):
        place = f"{FIRST_BLOCK + int(part.removeprefix('blocks_'))}.conv_block"
    elif part == "context":
        place, inner = str(context), _in_context(inner)
    else:
        place = {
            "weights": "0",
            "downsample": "2",
            "narrow": f"{after_blocks}.0",
            "narrow_norm": f"{after_blocks}.1",
            "group_norm": f"{context + 2}",
        }[part]
    return ".".join(["backbone", first, place, *inner, leaf])


def what_shapes_tell(
    names: Collection[str], shape: Callable[..., tuple[int, ...]], stages: int
) -> dict[str, Any]:
    """Keys of a config. `shape(name, *ranks)` is a tensor's shape, which has one of these ranks.

    The features are those that its authors' weights were trained with, of as many bands. Raises
    UserError where tensors do not fit each other.
    """
    channels, size = shape("backbone.stem.0.weight", 4)[0], shape("backbone.stage0.0.w", 4)[2]
    if size % channels:
        raise UserError(f"tensor backbone.stage0.0.w is not of multiples of {channels} channels")
    options = "frequency_strides", "time_strides", "blocks", "expansions", "reductions"
    found: dict[str, list] = {name: [] for name in options}
    here, step = channels, 1
    for number in range(stages):
        stage = f"backbone.stage{number}"
        wide, _, over_frequency, next_step = shape(f"{stage}.2.weight", 4)
        here, blocks = here * over_frequency, 0
        while f"{stage}.{FIRST_BLOCK + blocks}.conv_block.conv1.weight" in names:
            blocks += 1
        context = _context(blocks, f"{stage}.{FIRST_BLOCK + blocks}.0.weight" in names)
        hidden = shape(f"{stage}.{context}.red_dim_conv.0.weight", 3)[0]
        values = (
            over_frequency,
            max(1, next_step // step),
            max(1, blocks),
            wide / here,
            size // hidden,
        )
        for name, value in zip(options, values, strict=True):
            found[name].append(value)
        step = next_step
    head = shape("backbone.head.weight", 3, 4) if "backbone.head.weight" in names else None
    return {
        "features.kind": "redimnet2",
        "features.bands": size // channels,
        "features.f_min": 20.0,
        "features.f_max": 7600.0,
        "encoder.embedding": shape("linear.weight", 2)[0],
        "encoder.redimnet2.channels": channels,
        **{f"encoder.redimnet2.{name}": tuple(values) for name, values in found.items()},
        "encoder.redimnet2.head": "2d" if head is not None and len(head) == 4 else "1d",
        "encoder.redimnet2.head_channels": None if head is None else head[0],
        "encoder.redimnet2.group_norm": channels if "backbone.stem_gnorm.weight" in names else 0,
    }


def what_settings_tell(settings: dict[str, Any]) -> dict[str, Any]:
    """Keys of a config, of what stands under "model_config" in a checkpoint of its authors.

    Raises UserError for a setting that this encoder or its features do not have.
    """
    for name, allowed in ONLY.items():
        if name in settings and settings[name] not in allowed:
            raise UserError(
                f"its model_config has {name} {settings[name]}, where only {allowed[0]} is known "
                "here: use other weights"
            )
    keys: dict[str, Any] = {
        "encoder.redimnet2.head": "2d" if settings.get("return_2d_output") else "1d"
    }
    groups = settings.get("agg_gnorm")
    if groups and groups is not True:  # which is one for each channel
        keys["encoder.redimnet2.group_norm"] = groups
    return keys


def _context(blocks: int, narrowed: bool) -> int:
    """The position of the time context in a stage."""
    return FIRST_BLOCK + blocks + narrowed + 1


def _in_context(modules: list[str]) -> list[str]:
    """Names of a time context's parts."""
    part, _, number = modules[0].partition("_")
    if number.isdigit():
        return [CONTEXT[part].format(number)]
    if modules[0] != "attention":
        return [CONTEXT[modules[0]]]
    inner = modules[1]
    group = {"proj": "attention.", "dense": "feed_forward."}.get(inner.rpartition("_")[2], "")
    return [CONTEXT["attention"], group + inner]
