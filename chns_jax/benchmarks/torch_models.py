"""The other side of the comparison, in PyTorch: the same encoders, loss and optimiser.

SpeechBrain has the ECAPA-TDNN. No package has voxceleb_trainer's ThinResNet-34 (Chung et al. 2020),
so it is written here, wired as `encoders/thin_resnet.py` with self-attentive pooling over time; nor
ReDimNet2, which is in `torch_redimnet2`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from chns_jax.benchmarks.torch_redimnet2 import ReDimNet2
from chns_jax.config import Config, Encoder, Features


def make_encoder(encoder: Encoder, bands: int) -> nn.Module:
    """The encoder that the config describes: (b, t, f) -> (b, d)."""
    if encoder.kind == "thin_resnet":
        return _ThinResNet(encoder)
    if encoder.kind == "redimnet2":
        return ReDimNet2(encoder, bands)
    from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN

    options = encoder.ecapa
    return ECAPA_TDNN(
        bands,
        lin_neurons=encoder.embedding,
        channels=list(options.channels),
        kernel_sizes=list(options.kernel_sizes),
        dilations=list(options.dilations),
        attention_channels=options.attention_channels,
        res2net_scale=options.res2net_scale,
        se_channels=options.se_channels,
    )


def make_log_mel(features: Features, waveform: np.ndarray) -> dict[str, Callable[[], None]]:
    """`their log-mel`, of waveforms (b, s), by SpeechBrain's Fbank."""
    fbank, samples = _fbank(features), torch.from_numpy(waveform)

    def log_mel() -> None:  # it stays in its process
        fbank(samples)

    return {"their log-mel": log_mel}


def make_steps(
    config: Config, audio: np.ndarray, labels: np.ndarray, on_gpu: bool
) -> dict[str, Callable[[], float]]:
    """`their step`, a training step of SupCon and Adam on crops (2b, s) int16, and `their forward`,
    the pass alone, both from memory of the host on, with SpeechBrain's Fbank."""
    torch.manual_seed(0)
    device = "cuda" if on_gpu and torch.cuda.is_available() else "cpu"
    optimizer, features = config.optimizer, config.features
    module = make_encoder(config.encoder, features.bands).to(device)
    fbank = _fbank(features).to(device)
    waveforms, speakers = torch.from_numpy(audio), torch.from_numpy(labels).to(device)
    temperature = torch.tensor(0.1, device=device, requires_grad=True)
    adam = torch.optim.Adam(
        [*module.parameters(), temperature],
        lr=optimizer.learning_rate,
        weight_decay=optimizer.weight_decay,
    )

    def log_mel() -> torch.Tensor:
        with torch.no_grad():
            x = fbank(waveforms.to(device).float() / 32768)
            return x - x.mean(1, keepdim=True)

    def step() -> float:
        module.train()
        adam.zero_grad(set_to_none=True)
        z = F.normalize(module(log_mel()).reshape(len(audio), -1))
        loss = supcon(z, speakers, temperature)
        loss.backward()
        adam.step()
        return loss.item()  # waits for the device

    def forward() -> float:
        module.eval()
        with torch.no_grad():
            return module(log_mel()).sum().item()

    return {"their step": step, "their forward": forward}


def _fbank(features: Features) -> nn.Module:
    from speechbrain.lobes.features import Fbank

    return Fbank(
        sample_rate=features.sample_rate,
        n_mels=features.bands,
        f_min=features.f_min,
        f_max=features.f_max,
    )


def supcon(z: torch.Tensor, labels: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    """`losses.supcon`, dense."""
    logits = z @ z.T / temperature
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    positive = (labels[:, None] == labels) & ~itself
    log_normaliser = logits.masked_fill(itself, -torch.inf).logsumexp(1)
    return (log_normaliser - (logits * positive).sum(1) / positive.sum(1)).mean()


class _Block(nn.Module):
    def __init__(self, inputs: int, filters: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, filters, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(filters)
        self.conv2 = nn.Conv2d(filters, filters, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(filters)
        self.se1 = nn.Linear(filters, filters // 8)
        self.se2 = nn.Linear(filters // 8, filters)
        self.downsample = nn.Identity()
        if stride != 1 or inputs != filters:
            conv = nn.Conv2d(inputs, filters, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(filters))

    def forward(self, x):
        residual = self.downsample(x)
        x = self.bn1(F.relu(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        gate = torch.sigmoid(self.se2(F.relu(self.se1(x.mean((2, 3))))))
        return F.relu(x * gate[:, :, None, None] + residual)


class _ThinResNet(nn.Module):
    def __init__(self, encoder: Encoder):
        super().__init__()
        options = encoder.thin_resnet
        inputs, blocks = options.filters[0], []
        self.conv1 = nn.Conv2d(1, inputs, 7, (2, 1), 3, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        for stage, (count, filters) in enumerate(zip(options.layers, options.filters, strict=True)):
            for i in range(count):
                blocks.append(_Block(inputs, filters, 2 if i == 0 and stage in (1, 2) else 1))
                inputs = filters
        self.blocks = nn.Sequential(*blocks)
        self.sap = nn.Linear(inputs, inputs)
        self.attention = nn.Parameter(nn.init.xavier_normal_(torch.empty(inputs, 1)))
        self.fc = nn.Linear(inputs, encoder.embedding)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x.transpose(1, 2)[:, None])))
        x = self.blocks(x).mean(2).transpose(1, 2)
        weight = torch.softmax(torch.tanh(self.sap(x)) @ self.attention, dim=1)
        return self.fc((x * weight).sum(1))
