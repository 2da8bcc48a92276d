"""ReDimNet2 in PyTorch, whose tensors have its authors' names, wired as `encoders/redimnet2.py`.

A map is (b, f * c, t), 1-D, or the same numbers as (b, c, f, t), 2-D. Group normalisation, which
no encoder that is measured has, is left out.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from chns_jax.config import Encoder
from chns_jax.encoders.redimnet2 import (
    CONTEXT_TAPS,
    HEADS,
    LAYER_EPSILON,
    LEAST_VARIANCE,
    POOLING_CHANNELS,
)
from chns_jax.interop.redimnet2 import FIRST_BLOCK


class ReDimNet2(nn.Module):
    """Log-mel (b, t, f) -> embeddings (b, d)."""

    def __init__(self, encoder: Encoder, bands: int):
        super().__init__()
        self.backbone = _Backbone(encoder, bands)
        pooled = self.backbone.pooled
        self.pool = _Pooling(pooled)
        self.bn = nn.BatchNorm1d(2 * pooled)
        self.linear = nn.Linear(2 * pooled, encoder.embedding)

    def forward(self, x):
        return self.linear(self.bn(self.pool(self.backbone(x))))


class _Backbone(nn.Module):
    def __init__(self, encoder: Encoder, bands: int):
        super().__init__()
        options = encoder.redimnet2
        size, channels, step = bands * options.channels, options.channels, 1
        self.stem = nn.Sequential(nn.Conv2d(1, channels, 3, padding=1), _LayerNorm(channels))
        self.stages = []
        for i, (over_frequency, over_time, blocks, expansion, reduction) in enumerate(
            zip(
                options.frequency_strides, options.time_strides, options.blocks,
                options.expansions, options.reductions, strict=True,
            )
        ):  # fmt: skip
            channels, step = channels * over_frequency, step * over_time
            stage = _Stage(
                i + 1, size, channels, over_frequency, step, blocks, expansion, size // reduction
            )
            self.stages.append(f"stage{i}")
            self.add_module(self.stages[-1], stage)
        self.fin_wght1d = _WeightedSum(len(self.stages) + 1, size)
        self.flat, self.step, self.channels = options.head == "1d", step, channels
        given = size if self.flat else channels
        self.head, made = nn.Identity(), options.head_channels or given
        if options.head_channels:
            self.head = (nn.Conv1d if self.flat else nn.Conv2d)(given, made, 1)
        self.pooled = made * (1 if self.flat else size // channels)

    def forward(self, x):
        x = x[:, : x.shape[1] // self.step * self.step].transpose(1, 2)[:, None]
        maps = [_to_1d(self.stem(x))]
        for name in self.stages:
            maps.append(getattr(self, name)(maps))
        x = self.fin_wght1d(maps)
        return self.head(x if self.flat else _to_2d(x, self.channels)).flatten(1, -2)


class _Stage(nn.ModuleDict):
    """Layers by their positions in the authors' list, where those without tensors have one too."""

    def __init__(self, maps, size, channels, stride, step, blocks, expansion, hidden):
        super().__init__()
        self.inputs, self.step = channels // stride, step
        wide = int(channels * expansion + 1e-6)
        over = (stride, step)
        conv = nn.Conv2d(self.inputs, wide, over, over, groups=math.gcd(self.inputs, wide))
        layers = {"0": _WeightedSum(maps, size), "2": conv}
        places = [str(FIRST_BLOCK + i) for i in range(blocks)]
        layers |= {place: _Block(wide) for place in places}
        if expansion != 1:
            narrow = nn.Conv2d(wide, channels, 1)
            places.append(str(FIRST_BLOCK + blocks))
            layers[places[-1]] = nn.Sequential(narrow, nn.BatchNorm2d(channels, LAYER_EPSILON))
        layers[str(FIRST_BLOCK + len(places) + 1)] = _TimeContext(size, hidden)
        self.update(layers)

    def forward(self, maps):
        weights, conv, *blocks, context = self.values()
        x = conv(_to_2d(weights(maps), self.inputs))
        for block in blocks:
            x = block(x)
        return context(_to_1d(x)).repeat_interleave(self.step, dim=2)


class _Block(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv_block = nn.ModuleDict()
        for i in "12":
            depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
            self.conv_block[f"conv{i}"] = depthwise
            self.conv_block[f"conv{i}pw"] = nn.Conv2d(channels, channels, 1)
            self.conv_block[f"bn{i}"] = nn.BatchNorm2d(channels)

    def forward(self, x):
        conv1, conv1pw, bn1, conv2, conv2pw, bn2 = self.conv_block.values()
        return F.relu(x + bn2(conv2pw(conv2(bn1(F.relu(conv1pw(conv1(x))))))))


class _TimeContext(nn.Module):
    def __init__(self, size: int, hidden: int):
        super().__init__()
        self.red_dim_conv = nn.Sequential(nn.Conv1d(size, hidden, 1), _LayerNorm(hidden))
        context = (_Context(hidden, taps) for taps in CONTEXT_TAPS)
        self.tcm = nn.Sequential(*context, _Transformer(hidden))
        self.exp_dim_conv = nn.Conv1d(hidden, size, 1)

    def forward(self, x):
        return x + self.exp_dim_conv(self.tcm(self.red_dim_conv(x)))


class _Context(nn.Module):
    def __init__(self, channels: int, taps: int):
        super().__init__()
        depthwise = nn.Conv1d(channels, channels, taps, padding=taps // 2, groups=channels)
        self.dwconvs = nn.ModuleList([depthwise])
        self.norm = nn.BatchNorm1d(channels)
        self.pwconv1 = nn.Conv1d(channels, channels, 1)

    def forward(self, x):
        return x + self.pwconv1(F.gelu(self.norm(self.dwconvs[0](x))))


class _Transformer(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        names = "q_proj", "k_proj", "v_proj", "out_proj"
        self.attention = nn.ModuleDict({name: nn.Linear(channels, channels) for name in names})
        self.layer_norm = nn.LayerNorm(channels, LAYER_EPSILON)
        names = "intermediate_dense", "output_dense"
        self.feed_forward = nn.ModuleDict({name: nn.Linear(channels, channels) for name in names})
        self.final_layer_norm = nn.LayerNorm(channels, LAYER_EPSILON)

    def forward(self, x):
        x = x.transpose(1, 2)
        *projections, out = self.attention.values()
        heads = (layer(x).unflatten(2, (HEADS, -1)).transpose(1, 2) for layer in projections)
        attended = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        x = self.layer_norm(x + out(attended))
        first, second = self.feed_forward.values()
        x = self.final_layer_norm(x + second(F.gelu(first(x), approximate="tanh")))
        return x.transpose(1, 2)


class _WeightedSum(nn.Module):
    def __init__(self, maps: int, size: int):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1, maps, size, 1))

    def forward(self, maps):
        return (torch.stack(maps, 1) * self.w.softmax(1)).sum(1)


class _LayerNorm(nn.LayerNorm):
    """Over the channels, which are the second axis."""

    def __init__(self, channels: int):
        super().__init__(channels, LAYER_EPSILON)

    def forward(self, x):
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class _Pooling(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.linear1 = nn.Conv1d(3 * channels, POOLING_CHANNELS, 1)
        self.linear2 = nn.Conv1d(POOLING_CHANNELS, channels, 1)

    def forward(self, x):
        mean, variance = x.mean(2, keepdim=True), x.var(2, keepdim=True)
        context = torch.cat([mean, torch.sqrt(variance + LEAST_VARIANCE)], 1)
        hidden = self.linear1(torch.cat([x, context.expand(-1, -1, x.shape[2])], 1))
        weight = self.linear2(torch.tanh(hidden)).softmax(2)
        mean = (weight * x).sum(2)
        variance = (weight * x * x).sum(2) - mean * mean
        return torch.cat([mean, torch.sqrt(variance.clamp(min=LEAST_VARIANCE))], 1)


def _to_1d(x):
    return x.transpose(1, 2).flatten(1, 2)


def _to_2d(x, channels: int):
    return x.unflatten(1, (-1, channels)).transpose(1, 2)
