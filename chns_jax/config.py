"""The config: one frozen dataclass per concept, read from YAML and the command line.

A dataclass whose fields must fit each other says so in `check`, which raises UserError.

`load(argv)` understands `--config file.yaml`, dotted overrides (`--sampler.hard_ratio 0.5`),
`--help` and `--print_config`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

from chns_jax.common import keys, plain_yaml
from chns_jax.common.command_line import Parser, make_parser, parse
from chns_jax.common.errors import UserError, shortened
from chns_jax.common.reading import check_link
from chns_jax.common.values import (
    ClosedUnitInterval,
    NonNegativeFloat,
    NonNegativeInt,
    OpenUnitInterval,
    PositiveFloat,
    PositiveInt,
    between,
    shown_as,
)

RUN_CONFIG = "config.yaml"  # of a run folder, and of a published model
WEIGHTS = "model.safetensors"  # of a published model
BUILTIN_VOICES = "builtin:voices"
LONGEST_SECONDS = 600  # of a crop, of a segment, or of a window
LARGEST_SEED = 2**32 - 1  # of a larger one, JAX leaves out the upper bits
LAST_PORT = 65_535
A_WEEK = 7 * 24 * 3600  # seconds
# A simulated room's direct sound may take 0.04 s, before which there is silence.
RESPONSE_SECONDS = (0.05, 10.0)
# Where a run lives and how fast it goes may change when it is resumed; what it computes may not.
FREE_TO_CHANGE = (
    "out",
    "data.threads",
    "data.cache",
    "training.keep",
    "training.compilation_cache",
    "hosts",
)

# What a published model leaves out, and may not say: files, and what is of one machine.
NOT_PUBLISHED = (
    "out",
    "hosts",
    "data.root",
    "data.more_roots",
    "data.trials",
    "data.trials_root",
    "data.cache",
    "data.threads",
    "sampler.table",
    "augment.noise.root",
    "augment.reverberation.root",
    "training.start_from",
    "training.start_checkpoint",
    "training.devices",
    "training.keep",
    "training.compilation_cache",
)
# What of the rest a model is used by; how it was trained is there to be read by people.
USED_OF_PUBLISHED = (
    "features",
    "encoder",
    "data.crop_seconds",
    "validation.segment_seconds",
    "sampler.speakers",
    "sampler.clusters",
    "sampler.hard_ratio",
)

# Beyond these, a loss in float32 is no finite number, or no machine is large enough.
Steps = Annotated[int, between(1, 2**31 - 1)]
Threads = Annotated[int, between(1, 1024)]
Masks = Annotated[int, between(0, 100)]
Width = Annotated[int, between(1, 100_000)]
SampleRate = Annotated[int, between(1000, 768_000)]
WaitSeconds = Annotated[int, between(1, A_WEEK)]
LayerSize = Annotated[int, between(1, 65_536)]  # channels, taps, strides
Blocks = Annotated[int, between(1, 1000)]
Clusters = Annotated[int, between(1, 10_000_000)]
UtterancesPerSpeaker = Annotated[int, between(1, 1000)]
Talkers = Annotated[int, between(1, 1000)]
Temperature = Annotated[float, between(0.0001, 100)]
Margin = Annotated[float, between(0, 100)]
Scale = Annotated[float, between(0.01, 1000)]
LearningRate = Annotated[float, between(1e-10, 100)]
Decibels = Annotated[float, between(-100, 100)]


@dataclass(frozen=True)
class Voices:
    """The built-in synthetic corpus."""

    speakers: Annotated[int, between(1, 1_000_000)] = 400
    """Number of speakers."""
    utterances: Annotated[int, between(1, 10_000)] = 8
    """Utterances of each speaker; each counts as a recording of its own."""
    seconds: Annotated[float, between(0.1, LONGEST_SECONDS)] = 2.5
    """Mean duration of an utterance."""
    seed: NonNegativeInt = 0
    """Seed of the voices; independent of training.seed."""


@dataclass(frozen=True)
class Data:
    """Where the speech is, and who is kept out of training."""

    root: str = BUILTIN_VOICES
    """Folder <speaker>/<recording>/<utterance>, <speaker>/<utterance> or a Kaldi data folder; what
    chns_jax.prepare wrote, folder or URL; or builtin:voices."""
    more_roots: tuple[str, ...] = ()
    """Further folders of training speech, of other speakers."""
    trials: str | None | tuple[str, ...] = None
    """Validation trials, lines of "1 enrolment test", in a file or several; their speakers never
    appear in training. The first file's EER is that of the run and chooses its best checkpoint."""
    trials_root: str | None = None
    """Folder of the trials' files; data.root when not given."""
    held_out: NonNegativeInt = 0
    """Without trials: speakers of data.root kept out of training, from whom trials are made."""
    speeds: tuple[Annotated[float, between(0.5, 2)], ...] = ()
    """Speeds at which all training speakers are heard too, as other speakers: with [0.9, 1.1] there
    are three times as many, who are clustered and classified like all."""
    crop_seconds: PositiveFloat = 3.0
    """Length of a training crop; shorter utterances are repeated to fill it."""
    threads: Threads = 8
    """Threads that decode audio."""
    cache: str = "~/.cache/chns_jax"
    """Folder for corpus indices and the built-in corpus."""
    voices: Voices = field(default_factory=Voices)

    def check(self) -> None:
        if 1 in self.speeds or len(set(self.speeds)) < len(self.speeds):
            raise UserError(
                f"data.speeds {shown_as(self.speeds)} must differ from each other and from 1"
            )

    @property
    def trial_lists(self) -> tuple[str, ...]:
        """The files of trials: none, one or several."""
        return (self.trials,) if isinstance(self.trials, str) else self.trials or ()


@dataclass(frozen=True)
class Features:
    """Log-mel features."""

    kind: Literal["speechbrain", "kaldi", "kaldi_hamming", "sherpa", "redimnet2"] = "speechbrain"
    """Definition; kaldi_hamming: Hamming window and samples in the range of int16, as wespeaker's;
    sherpa: Kaldi's with mirrored ends, as sherpa-onnx computes with an f_max of 7600; redimnet2: of
    waveforms of mean 0 and deviation 1, as ReDimNet2's authors'. Kaldi's own f_min is 20, and
    theirs too, with an f_max of 7600 and 72 bands."""
    sample_rate: SampleRate = 16_000
    """Hz; audio of other rates is resampled."""
    bands: Annotated[int, between(1, 1000)] = 80
    """Mel bins."""
    window_ms: PositiveFloat = 25.0
    """Length of an analysis window."""
    hop_ms: PositiveFloat = 10.0
    """Distance between windows."""
    f_min: float = 0.0
    """Lower edge of the lowest mel bin, Hz."""
    f_max: float = 8_000.0
    """Upper edge of the highest mel bin, Hz."""
    mean_normalise: bool = True
    """Subtract each mel bin's mean over time."""

    @property
    def window(self) -> int:
        """Window length in samples."""
        return round(self.window_ms * self.sample_rate / 1000)

    @property
    def hop(self) -> int:
        """Hop in samples."""
        return round(self.hop_ms * self.sample_rate / 1000)

    def check(self) -> None:
        if max(self.window_ms, self.hop_ms) > 1000 * LONGEST_SECONDS:
            raise UserError(
                f"features.window_ms and features.hop_ms must be {1000 * LONGEST_SECONDS} at most"
            )
        if self.hop < 1 or self.window < 2:
            raise UserError(
                "features.window_ms and features.hop_ms must be at least a sample or two long"
            )
        if self.kind == "sherpa" and self.hop > self.window:
            raise UserError("features.kind sherpa needs a features.hop_ms up to its window_ms")
        if not 0 <= self.f_min < self.f_max <= self.sample_rate / 2:
            raise UserError(
                "features.f_min and features.f_max must lie in order between 0 and half the "
                "sample rate"
            )
        if self.f_max - self.f_min < self.bands:
            raise UserError(
                f"features.f_min and features.f_max must lie {self.bands} Hz apart at least, one a "
                "mel bin"
            )


@dataclass(frozen=True)
class Ecapa:
    """ECAPA-TDNN: one entry for the first layer, one for each block, one for the aggregation."""

    channels: tuple[LayerSize, ...] = (256, 256, 256, 256, 768)
    """Output channels."""
    kernel_sizes: tuple[LayerSize, ...] = (5, 3, 3, 3, 1)
    """Taps of the convolutions."""
    dilations: tuple[LayerSize, ...] = (1, 2, 3, 4, 1)
    """Frames between taps."""
    res2net_scale: LayerSize = 8
    """Channel groups of a Res2Net block."""
    se_channels: LayerSize = 128
    """Bottleneck of squeeze-and-excitation."""
    attention_channels: LayerSize = 128
    """Bottleneck of the attentive pooling."""

    @property
    def reach(self) -> int:
        """Frames that the widest convolution spans, but one."""
        layers = zip(self.kernel_sizes, self.dilations, strict=True)
        return max((taps - 1) * dilation for taps, dilation in layers)

    def check(self) -> None:
        layers = [len(self.channels), len(self.kernel_sizes), len(self.dilations)]
        if len(set(layers)) > 1 or layers[0] < 3:
            raise UserError(
                "encoder.ecapa.channels, kernel_sizes and dilations need one entry a layer, 3 or "
                f"more: they have {layers[0]}, {layers[1]} and {layers[2]}"
            )
        inner = self.channels[1:-1]
        if any(channels % self.res2net_scale for channels in inner):
            raise UserError(
                f"encoder.ecapa.channels {list(inner)} of the blocks must be multiples of "
                f"encoder.ecapa.res2net_scale {self.res2net_scale}"
            )


@dataclass(frozen=True)
class ThinResNet:
    """ThinResNet-34 with squeeze-and-excitation: one entry for each stage."""

    layers: tuple[Blocks, ...] = (3, 4, 6, 3)
    """Residual blocks."""
    filters: tuple[LayerSize, ...] = (16, 32, 64, 128)
    """Output channels."""
    pooling: Literal["sap", "asp"] = "asp"
    """sap: self-attentive; asp: attentive statistics."""
    attend_over: Literal["time", "frequency"] = "time"
    """What attention weighs; frequency: as the paper's code has it."""

    def check(self) -> None:
        if len(self.layers) != len(self.filters) or not self.layers:
            raise UserError(
                "encoder.thin_resnet.layers and filters need one entry a stage, 1 or more: they "
                f"have {len(self.layers)} and {len(self.filters)}"
            )
        if min(self.filters) < 8:
            raise UserError(
                "encoder.thin_resnet.filters must be 8 or more: their gates have an eighth of them"
            )


@dataclass(frozen=True)
class ReDimNet2:
    """ReDimNet2, by default its paper's B1: lists have one entry for each stage."""

    channels: LayerSize = 16
    """Channels of each mel bin at the start."""
    frequency_strides: tuple[LayerSize, ...] = (1, 2, 1, 2, 1, 2)
    """By what a stage divides the number of bins, and multiplies their channels."""
    time_strides: tuple[LayerSize, ...] = (1, 1, 2, 1, 2, 1)
    """By what a stage divides the number of frames that the one before it has."""
    blocks: tuple[Blocks, ...] = (2, 3, 4, 5, 4, 3)
    """Residual blocks."""
    expansions: tuple[Annotated[float, between(0.1, 100)], ...] = (2.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    """How many times the channels the residual blocks have."""
    reductions: tuple[LayerSize, ...] = (32, 32, 32, 32, 16, 16)
    """By what the channels of all bins are divided for the convolutions and attention over time."""
    head: Literal["1d", "2d"] = "2d"
    """What is pooled. 1d: the channels of all bins together, as wespeaker's B0 to B3; 2d: those of
    each bin, as the paper's."""
    head_channels: LayerSize | None = None
    """Channels to which a product maps them before; null: none does."""
    group_norm: NonNegativeInt = 0
    """Groups of channels by which the output of each stage is normalised; 0: it is not."""

    def check(self) -> None:
        stages = {
            name: len(value)
            for name, value in vars(self).items()
            if isinstance(value, (list, tuple))
        }
        if len(set(stages.values())) > 1 or not self.blocks:
            raise UserError(
                f"encoder.redimnet2.{', '.join(stages)} need one entry a stage, 1 or more: they "
                f"have {', '.join(map(str, stages.values()))}"
            )
        for stage, expansion in enumerate(self.expansions, start=1):
            if self.channels * math.prod(self.frequency_strides[:stage]) * expansion + 1e-6 < 1:
                raise UserError(
                    f"encoder.redimnet2.expansions {list(self.expansions)} leave stage {stage} no "
                    "channel: raise them, or encoder.redimnet2.channels"
                )

    def check_bands(self, bands: int) -> None:
        """Raises UserError where log-mel of so many bands cannot be divided as it says."""
        sizes = bands * self.channels, math.prod(self.frequency_strides)
        if bands % sizes[1]:
            raise UserError(
                f"features.bands {bands} must be a multiple of {sizes[1]}, the product of "
                f"encoder.redimnet2.frequency_strides"
            )
        if any((sizes[0] // reduction or 1) % 4 for reduction in self.reductions):
            raise UserError(
                f"encoder.redimnet2.reductions {list(self.reductions)} must leave a multiple of 4, "
                f"the heads of attention, of {sizes[0]}: features.bands times "
                f"encoder.redimnet2.channels"
            )
        if self.group_norm and sizes[0] % self.group_norm:
            raise UserError(
                f"encoder.redimnet2.group_norm {self.group_norm} must divide {sizes[0]}: "
                f"features.bands times encoder.redimnet2.channels"
            )


# The sections of Encoder, by the kind that they are the options of.
OPTIONS = {"ecapa_tdnn": "ecapa", "thin_resnet": "thin_resnet", "redimnet2": "redimnet2"}


@dataclass(frozen=True)
class Encoder:
    """What turns log-mel into a speaker embedding."""

    kind: Literal["ecapa_tdnn", "thin_resnet", "redimnet2"] = "ecapa_tdnn"
    """Architecture."""
    embedding: LayerSize = 192
    """Dimensions of a speaker embedding."""
    ecapa: Ecapa = field(default_factory=Ecapa)
    thin_resnet: ThinResNet = field(default_factory=ThinResNet)
    redimnet2: ReDimNet2 = field(default_factory=ReDimNet2)


CLASSIFICATIONS = ("aam_softmax", "sphereface2")  # losses that compare rows with classes


@dataclass(frozen=True)
class Loss:
    """What training minimises."""

    kind: Literal["supcon", "hscl", "nt_xent", "aam_softmax", "sphereface2"] = "supcon"
    """supcon: supervised contrastive; hscl: the same with hard negatives weighed by the loss;
    nt_xent: an utterance's only positive is its other view; aam_softmax: classification of
    speakers; sphereface2: the same, each class apart from all others by a binary classifier."""
    temperature: Temperature = 0.1
    """Temperature of the softmax at the start."""
    learn_temperature: bool = True
    """Train the temperature with the encoder."""
    min_temperature: Temperature = 0.01
    """The learned temperature never falls below this."""
    margin: Margin = 0.0
    """supcon: subtracted from the cosine of an anchor and its positive view; nt_xent: from what
    that cosine divided by the temperature is."""
    beta: Margin = 0.1
    """hscl: how much harder negatives outweigh others; 0: not at all."""
    joint: Literal["aam_softmax", "sphereface2"] | None = None
    """Contrastive losses: a classification whose loss, times joint_weight, is added."""
    joint_weight: Annotated[float, between(0.0001, 10_000)] = 1.0
    """What the loss of the classification in joint is multiplied by."""
    aam_margin: NonNegativeFloat = 0.2
    """aam_softmax: added to the angle of an embedding and its own class, radians; sphereface2: how
    far the own class must lie above the boundary, and the others below it."""
    aam_margin_grows: tuple[NonNegativeInt, NonNegativeInt] = (0, 0)
    """aam_softmax, sphereface2: the first and the last step of those in which the margin grows from
    0, fast and then slowly; [0, 0]: it is whole from the start."""
    aam_scale: Scale = 30.0
    """aam_softmax, sphereface2: what cosines are multiplied by."""
    sub_centres: Annotated[int, between(1, 100)] = 1
    """aam_softmax, sphereface2: centres of a class, the nearest of which counts."""
    top_k: Annotated[int, between(0, 10_000)] = 0
    """aam_softmax: so many of the other classes, the nearest, get a margin of their own."""
    top_k_margin: Annotated[float, between(0, 1)] = 0.06
    """aam_softmax: taken from the angle to those, radians; it grows as the margin does."""
    sphereface2_lambda: OpenUnitInterval = 0.7
    """sphereface2: weight of the own class; the others have the rest of 1."""
    sphereface2_t: Annotated[float, between(1, 100)] = 3.0
    """sphereface2: power that spreads high cosines apart."""

    @property
    def contrastive(self) -> bool:
        """Whether rows are compared with rows."""
        return self.kind not in CLASSIFICATIONS

    @property
    def classification(self) -> str | None:
        """The loss that compares rows with classes, if there is one."""
        return self.joint if self.contrastive else self.kind

    def check(self) -> None:
        if self.min_temperature >= self.temperature:
            raise UserError("loss.temperature must lie above loss.min_temperature")
        if self.aam_margin >= math.pi / 2:
            raise UserError("loss.aam_margin must be below pi / 2 radians")
        if self.joint and not self.contrastive:
            raise UserError(
                f"loss.joint is added to contrastive losses: leave it null with loss.kind "
                f"{self.kind}"
            )
        first, last = self.aam_margin_grows
        if (first, last) != (0, 0) and first >= last:
            raise UserError(
                f"loss.aam_margin_grows {[first, last]} must be two steps in order, or [0, 0]"
            )
        if self.top_k and self.classification != "aam_softmax":
            raise UserError("loss.top_k needs aam_softmax as loss.kind or as loss.joint")
        of_classes = {"aam_margin_grows": last > 0, "sub_centres": self.sub_centres > 1}
        for key, used in of_classes.items():
            if used and not self.classification:
                raise UserError(
                    f"loss.{key} needs aam_softmax or sphereface2 as loss.kind or as loss.joint"
                )


@dataclass(frozen=True)
class Sampler:
    """What a batch is made of."""

    kind: Literal["chns", "random", "utterances"] = "chns"
    """chns: hard negatives from clusters of similar speakers; random: distinct speakers;
    utterances: single utterances, each of the corpus once an epoch (for aam_softmax and
    sphereface2)."""
    speakers: PositiveInt = 650
    """Speakers in a batch, two utterances each; with kind utterances, twice as many utterances."""
    hard_ratio: ClosedUnitInterval = 0.5
    """Share of a batch's speakers that come from clusters, 0 to 1."""
    clusters: Clusters = 50
    """Number of clusters K."""
    kmeans: Literal["auto", "full", "sampled"] = "auto"
    """full: k-means of all speakers; sampled: of a sixth of them, then ten iterations over all, for
    a fifth of the time; auto: full below 20,000 speakers."""
    cluster_by: Literal["voice", "chance"] = "voice"
    """voice: similar speakers share a cluster; chance: clusters are as large, of speakers that are
    drawn, a control: what it gains is not for the voices."""
    fill: Literal["pool", "whole"] = "pool"
    """pool: draw the hard speakers from all those of the clusters drawn; whole: take clusters
    whole, one after another, until there are enough (harder)."""
    next_cluster: Literal["random", "nearest"] = "random"
    """Which cluster joins when those drawn are too small."""
    repeats: bool = False
    """All hard speakers come from one cluster; one that is too small gives its speakers several
    times, with utterances drawn anew."""
    cluster_weight: Literal["size", "uniform"] = "size"
    """size: larger clusters are drawn first more often, so that speakers of small and of large
    clusters are seen more equally often; uniform: all clusters alike, as in the paper's code."""
    refresh_every: PositiveInt | Literal["never"] = 1000
    """Steps (or epochs) between refreshes of the clusters; never: use sampler.table throughout."""
    refresh_unit: Literal["steps", "epochs"] = "steps"
    """Unit of refresh_every."""
    refresh_ahead: NonNegativeInt = 0
    """Steps before its first batch at which a refresh begins, beside training and on one device; it
    clusters with the encoder of that step. Training waits when they are too few. 0: training stops
    for a refresh."""
    start_step: NonNegativeInt = 0
    """Before this step, batches are random and nothing is clustered."""
    table: str | None = None
    """File of clusters (.npz from `python -m chns_jax.cluster`) to start with."""
    utterances_per_speaker: UtterancesPerSpeaker = 10
    """Utterances embedded for a voiceprint, k."""
    normalise_first: bool = False
    """L2-normalise embeddings before averaging them to a voiceprint."""

    def check(self) -> None:
        if self.speakers < 2:
            raise UserError("sampler.speakers must be at least 2: the others are negatives")
        clusters_come = self.refresh_every != "never" or self.table or self.start_step
        if self.kind == "chns" and not clusters_come:
            raise UserError(
                "sampler.refresh_every never needs sampler.table, or a sampler.start_step at which "
                "the speakers are clustered once"
            )


@dataclass(frozen=True)
class Noise:
    """Noise added to training crops."""

    probability: ClosedUnitInterval = 0.0
    """Share of the crops."""
    root: str | None = None
    """Folder of noise. MUSAN's subfolders noise, music and speech count as what they are called,
    everything else as noise; a crop gets one of the kinds that are there."""
    noise_snr: tuple[Decibels, Decibels] = (0.0, 15.0)
    """Lowest and highest signal-to-noise ratio, dB."""
    music_snr: tuple[Decibels, Decibels] = (5.0, 15.0)
    """The same of music."""
    speech_snr: tuple[Decibels, Decibels] = (13.0, 20.0)
    """The same of babble."""
    talkers: tuple[Talkers, Talkers] = (3, 7)
    """Fewest and most recordings of speech that make babble."""

    def check(self) -> None:
        if self.probability and not self.root:
            raise UserError("augment.noise.probability needs augment.noise.root, a folder of noise")
        ranges = (self.noise_snr, self.music_snr, self.speech_snr, self.talkers)
        if any(low > high for low, high in ranges):
            raise UserError("augment.noise: the lowest of a range must not lie above its highest")


@dataclass(frozen=True)
class Reverberation:
    """Training crops as heard in a room."""

    probability: ClosedUnitInterval = 0.0
    """Share of the crops."""
    root: str | None = None
    """Folder of impulse responses; rooms are simulated when not given."""
    responses: Annotated[int, between(1, 100_000)] = 200
    """Impulse responses in use: drawn from the folder, or simulated."""
    seconds: PositiveFloat = 0.5
    """Length to which they are cut."""

    def check(self) -> None:
        shortest, longest = RESPONSE_SECONDS
        if not shortest <= self.seconds <= longest:
            raise UserError(
                f"augment.reverberation.seconds must lie between {shortest} and {longest}"
            )


@dataclass(frozen=True)
class Speed:
    """Training crops played faster or slower, with their pitch."""

    probability: ClosedUnitInterval = 0.0
    """Share of the crops."""
    factors: tuple[Annotated[float, between(0.5, 2)], ...] = (0.9, 1.1)
    """Speeds, of which each such crop gets one."""
    new_speakers: bool = False
    """A speaker at another speed counts as another speaker, of whom clusters know nothing; they
    know of those of data.speeds."""

    def check(self) -> None:
        if self.probability and not self.factors:
            raise UserError("augment.speed.factors must be one or more speeds from 0.5 to 2")


@dataclass(frozen=True)
class SpecAugment:
    """Time and frequency masks of the log-mel (Park et al. 2019)."""

    probability: ClosedUnitInterval = 0.0
    """Share of the crops."""
    time_masks: Masks = 1
    """Time masks."""
    time_width: Width = 10
    """Frames in the widest one."""
    band_masks: Masks = 1
    """Frequency masks."""
    band_width: PositiveInt = 8
    """Mel bins in the widest one."""


@dataclass(frozen=True)
class Augment:
    """What is done to training crops: speed, then reverberation, noise, and SpecAugment."""

    noise: Noise = field(default_factory=Noise)
    reverberation: Reverberation = field(default_factory=Reverberation)
    speed: Speed = field(default_factory=Speed)
    spec_augment: SpecAugment = field(default_factory=SpecAugment)


@dataclass(frozen=True)
class Optimizer:
    """Adam, or SGD, with linear warm-up and a decay of the learning rate."""

    kind: Literal["adam", "sgd"] = "adam"
    """adam; sgd: stochastic gradient descent with Nesterov's momentum."""
    momentum: Annotated[float, between(0, 0.9999)] = 0.9
    """sgd: how much of a step the next one keeps."""
    learning_rate: LearningRate = 0.01
    """At the end of the warm-up; with decay exponential, of the first step if there is none."""
    weight_decay: Annotated[float, between(0, 1)] = 2e-6
    """L2 penalty, added to the gradient."""
    temperature_learning_rate: LearningRate | None = None
    """Of the loss's temperature, in place of learning_rate; the same when not given."""
    warmup: ClosedUnitInterval = 0.1
    """Share of the steps in which the learning rate rises from 0."""
    decay: Literal["cosine", "exponential"] = "cosine"
    """cosine: after the warm-up, to 0; exponential: from the first step on, to
    last_learning_rate, which the warm-up multiplies."""
    last_learning_rate: LearningRate = 5e-5
    """exponential: at the end."""

    def check(self) -> None:
        if self.decay == "exponential" and self.last_learning_rate > self.learning_rate:
            raise UserError(
                f"optimizer.last_learning_rate {self.last_learning_rate:g} must not lie above "
                f"optimizer.learning_rate {self.learning_rate:g}"
            )


@dataclass(frozen=True)
class Training:
    """How long and how often."""

    steps: Steps = 154_000
    """Number of updates."""
    start_from: str | None = None
    """Folder of a run, or of a published model, whose encoder training begins with; of a run its
    classes too, if they are the same."""
    start_checkpoint: str = "last"
    """Of that run: last, best (lowest EER), a step number, or average:N, the mean of the last N."""
    seed: NonNegativeInt = 0
    """Seed of everything random in a run."""
    epoch_utterances: PositiveInt | None = None
    """Utterances in an epoch; all those of the training speakers when not given."""
    checkpoint_every: PositiveInt = 1000
    """Steps between checkpoints."""
    keep: PositiveInt = 2
    """Latest checkpoints kept, besides the one of lowest validation EER; --checkpoint average:N
    needs N."""
    average_decay: Annotated[float, between(0, 0.999999)] = 0.0
    """Decay of an exponential moving average of the parameters and the running statistics, with
    which validation, refreshes and --model embed; 0: none, they embed with the last ones."""
    log_every: PositiveInt = 10
    """Steps between lines of metrics."""
    devices: PositiveInt | None = None
    """Devices to use; all when not given."""
    micro_batch: PositiveInt | None = None
    """Rows embedded at a time, when memory does not hold the activations of all; batch
    normalisation then sees so many. The loss compares all rows of the batch in any case."""
    batch_statistics: Literal["all", "easy", "running"] = "all"
    """What batch normalisation normalises batches from clusters by, whose speakers sound alike.
    all: the statistics of all rows, as the paper; easy: those of the rows that are not from
    clusters; running: those of the random batches before sampler.start_step, which stay."""
    compute: Literal["float32", "bfloat16"] = "float32"
    """What the encoder's convolutions compute in while it trains; parameters, statistics, the loss
    and the embeddings of voiceprints and validation are float32."""
    product_precision: Literal["bfloat16", "tensorfloat32", "float32"] = "tensorfloat32"
    """How exact the encoder's products of float32 numbers are at least while it trains; sums are
    float32. CPUs: always float32. NVIDIA GPUs: float32, and TensorFloat-32 for the other two, as
    PyTorch's convolutions by default. TPUs: bfloat16; float32 in three parts of bfloat16, in six.
    The loss and the embeddings of voiceprints and validation are float32 whatever this is."""
    remat: bool = False
    """Make the activations of the encoder's blocks again for the gradient, instead of keeping
    them: less memory, a third more work. On a CPU it saves nothing: XLA makes them once there."""
    compilation_cache: str | None = "compiled"
    """Folder, relative to data.cache, for compiled programs, with which a run starts sooner when it
    is started again; null: none."""

    def check(self) -> None:
        if self.seed > LARGEST_SEED:
            raise UserError(f"training.seed {self.seed} must be {LARGEST_SEED} at most")
        if self.start_checkpoint != "last" and not self.start_from:
            raise UserError(
                "training.start_checkpoint is one of training.start_from, which is not given: give "
                "both or neither"
            )


@dataclass(frozen=True)
class Validation:
    """EER and minDCF on speakers never trained on."""

    every: NonNegativeInt = 5000
    """Steps between validations; there is one at the end in any case. 0: only at the end."""
    segment_seconds: PositiveFloat | None = None
    """Utterances are cut into evenly spaced segments of this length, whose embeddings are averaged;
    data.crop_seconds when not given."""
    max_trials: PositiveInt = 100_000
    """Trials made from held-out speakers, at most."""
    floor: bool = False
    """Also report the EER of cosine between MFCC means and deviations."""


@dataclass(frozen=True)
class Hosts:
    """Several hosts that train one run, each with the same command; one, when none is named."""

    detect: bool = False
    """Find the others as JAX does on TPU pods, Slurm, Kubernetes and Open MPI."""
    coordinator: str | None = None
    """ADDRESS:PORT at which host 0 can be reached by the others."""
    count: Annotated[int, between(1, 100_000)] | None = None
    """Number of hosts."""
    index: NonNegativeInt | None = None
    """Which of them this is, from 0."""
    timeout: WaitSeconds = 300
    """Seconds to wait at the start until all are there."""
    heartbeat: WaitSeconds = 30
    """Seconds after which a host that gives no sign of life is lost, and all end."""

    @property
    def several(self) -> bool:
        """Whether other hosts take part."""
        return self.detect or self.coordinator is not None

    def check(self) -> None:
        coordinator, count, index = self.coordinator, self.count, self.index
        if coordinator is None and count is None and index is None:
            return
        if coordinator is None or count is None or index is None or self.detect:
            raise UserError(
                "hosts.coordinator, hosts.count and hosts.index are given together, and without "
                "hosts.detect"
            )
        address, _, port = coordinator.rpartition(":")
        is_port = port.isascii() and port.isdecimal() and len(port) < 6 and int(port) <= LAST_PORT
        if not (address and is_port):
            raise UserError(
                f"hosts.coordinator {shortened(coordinator)} must be an address and a port, "
                "such as 10.0.0.1:7890"
            )
        if index >= count:
            raise UserError(
                f"hosts.index {index} must lie below hosts.count {count}: the first is 0"
            )


@dataclass(frozen=True)
class Config:
    """A training run. A run is its config and its seed."""

    out: str = "runs/chns"
    """Run folder; one that holds a run of the same config is resumed."""
    data: Data = field(default_factory=Data)
    features: Features = field(default_factory=Features)
    encoder: Encoder = field(default_factory=Encoder)
    loss: Loss = field(default_factory=Loss)
    sampler: Sampler = field(default_factory=Sampler)
    augment: Augment = field(default_factory=Augment)
    optimizer: Optimizer = field(default_factory=Optimizer)
    training: Training = field(default_factory=Training)
    validation: Validation = field(default_factory=Validation)
    hosts: Hosts = field(default_factory=Hosts)

    @property
    def crop_samples(self) -> int:
        """Samples s of a training crop."""
        return round(self.data.crop_seconds * self.features.sample_rate)

    @property
    def read_samples(self) -> int:
        """Samples read for a training crop: faster playing uses up more of them."""
        speed = self.augment.speed
        fastest = max(1.0, *speed.factors) if speed.probability else 1.0
        return math.ceil(fastest * self.crop_samples)

    @property
    def segment_samples(self) -> int:
        """Samples of a segment of an utterance that is embedded whole."""
        seconds = self.validation.segment_seconds or self.data.crop_seconds
        return round(seconds * self.features.sample_rate)

    def check(self) -> None:
        """What sections ask of each other; each has been checked by itself before."""
        features, sampler, micro_batch = self.features, self.sampler, self.training.micro_batch
        if sampler.kind == "utterances" and self.loss.contrastive:
            raise UserError(
                f"sampler.kind utterances gives no pairs, which loss.kind {self.loss.kind} needs: "
                "use sampler.kind random or chns"
            )
        if self.data.speeds and self.augment.speed.new_speakers:
            raise UserError(
                "data.speeds and augment.speed.new_speakers both make speakers of speeds: leave one"
            )
        clustered = sampler.kind == "chns"
        statistics = self.training.batch_statistics
        if clustered and statistics == "easy" and sampler.hard_ratio == 1:
            raise UserError(
                "training.batch_statistics easy needs rows that are not from clusters: lower "
                "sampler.hard_ratio"
            )
        begun = sampler.start_step > 0 or self.training.start_from
        if clustered and statistics == "running" and not begun:
            raise UserError(
                "training.batch_statistics running needs random batches that make them: give a "
                "sampler.start_step, or training.start_from"
            )
        if micro_batch is not None and (micro_batch < 2 or 2 * sampler.speakers % micro_batch):
            raise UserError(
                f"training.micro_batch {micro_batch} must be 2 or more, and divide the "
                f"{2 * sampler.speakers} rows of a batch"
            )
        if self.augment.spec_augment.band_width > features.bands:
            raise UserError(
                f"augment.spec_augment.band_width exceeds the {features.bands} mel bins"
            )
        if sampler.refresh_ahead and self.hosts.several:
            raise UserError("sampler.refresh_ahead works on one host: leave it 0 with hosts.*")
        if self.encoder.kind == "redimnet2":
            self.encoder.redimnet2.check_bands(features.bands)
        # Reflection needs so many, and so do strides.
        reflected = (self.encoder.ecapa.reach + 1) // 2 + 1
        fewest = max(10, reflected, math.prod(self.encoder.redimnet2.time_strides))
        lengths = {
            "data.crop_seconds": self.data.crop_seconds,
            "validation.segment_seconds": self.validation.segment_seconds,
        }
        for key, seconds in lengths.items():
            if seconds is None:
                continue
            frames = (seconds * features.sample_rate - features.window) / features.hop
            if frames < fewest or seconds > LONGEST_SECONDS:
                raise UserError(
                    f"{key} {seconds:g} must hold {fewest} frames at least, and {LONGEST_SECONDS} "
                    "seconds at most"
                )


def load(argv: list[str] | None = None, description: str = "") -> Config:
    """The config that `argv` describes; `--config` files first, overrides after them, in order.

    A file may name another under `base`, relative to itself, which is read before it. Raises
    UserError for an unknown key, a value of a wrong type or one out of range.
    """
    parser = make_parser(description, "%(prog)s [--config FILE] [--KEY VALUE ...]")
    add_keys(parser)
    return read(parser, sys.argv[1:] if argv is None else argv)


def add_keys(parser: Parser) -> None:
    """Let a command take `--config` and the keys of a config, for `read`."""
    parser.add_argument(
        "--print_config", action="store_true", help="Print the config as YAML, and do nothing else."
    )
    keys.add_keys(parser, Config)


def read(parser: Parser, argv: list[str], *, defaults: dict[str, Any] | None = None) -> Config:
    """The config among the arguments of a command; raises UserError as `load` does.

    `defaults`: values of dotted keys that files and arguments leave open.
    """
    known = keys.read_keys(keys.keys_of(Config), defaults or {})
    chosen = parse(parser, argv, known)
    config = keys.make(Config, vars(chosen))
    _check(config)
    if chosen.print_config:
        print(to_yaml(config), end="")
        sys.exit()
    return config


def replaced(config: Config, values: dict[str, Any], where: str = "") -> Config:
    """The config with other values of dotted keys; raises UserError as `load`, which ends with
    `where` for a key that is unknown or does not fit, and for keys that do not fit each other."""
    known = keys.keys_of(Config)
    made = keys.make(Config, {**dict(keys.flat(config)), **keys.read_keys(known, values, where)})
    try:
        _check(made)
    except UserError as error:
        raise UserError(f"{error}{where}") from error
    return made


def read_run(run: Path | str) -> Config:
    """The config of a run folder, or of a published model. Raises UserError when it is neither."""
    folder = Path(run).expanduser()
    path = folder / RUN_CONFIG
    if not path.is_file():
        raise UserError(f"{run} is not a run folder: it holds no {RUN_CONFIG}")
    if is_published(folder):
        return _read_published(folder)
    try:
        return load(["--config", str(path)])
    except UserError:
        if os.path.isdir(folder / "checkpoints"):
            raise
        raise UserError(f"{run} holds neither checkpoints nor a {WEIGHTS}: get it again") from None


def is_published(folder: Path) -> bool:
    """Whether a folder holds a published model, and not a run."""
    return os.path.lexists(folder / WEIGHTS) and not (folder / "checkpoints").is_dir()


def to_published_yaml(config: Config) -> str:
    """The config as YAML without what a published model leaves out."""
    return yaml.safe_dump(_without(_plain(config), ""), sort_keys=False)


def to_yaml(config: Config) -> str:
    """The config as YAML, every key, that `load` reads again."""
    return yaml.safe_dump(_plain(config), sort_keys=False)


def differences(one: Config, other: Config) -> list[str]:
    """Keys that change what a run computes, and whose values differ."""
    mine, theirs = (dict(keys.flat(config)) for config in (one, other))
    return [key for key in mine if not _is_free(key) and mine[key] != theirs[key]]


def check_apart(path: Path, config: Config) -> None:
    """Raises UserError when a folder to write to is one that the run reads."""
    data, augment = config.data, config.augment
    read = (
        data.root, *data.more_roots, data.trials_root, augment.noise.root,
        augment.reverberation.root,
    )  # fmt: skip
    there = [os.path.expanduser(root) for root in read if root]
    if any(os.path.isdir(root) and os.path.samefile(root, path) for root in there):
        raise UserError(f"{path} is a folder that the run reads from: give another --out")


def check_unedited(
    config: Config, saved: str, run: Path | str, sections: Iterable[str] | None = None
) -> None:
    """Raises UserError when keys of `sections`, all when not given, are not what they were when the
    run saved its config with a checkpoint, as YAML; a key that was unknown then may be anything."""
    if not saved:  # there is no checkpoint yet
        return
    try:
        tree = plain_yaml.load(saved)
    except yaml.YAMLError:
        tree = None
    if not isinstance(tree, dict):
        raise UserError(f"the config in a checkpoint of {run} is damaged")
    then = dict(_leaves(tree))
    changed = [
        f"{key} (was {shortened(shown_as(then[key]))})"
        for key, value in _leaves(plain_yaml.load(to_yaml(config)))
        if not _is_free(key)
        and key in then
        and then[key] != value
        and (sections is None or key.partition(".")[0] in sections)
    ]
    if changed:
        raise UserError(
            f"{run} was trained with another config than its {RUN_CONFIG} says now: put back "
            f"{', '.join(changed)}"
        )


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _is_free(key: str) -> bool:
    return _is_among(key, FREE_TO_CHANGE)


def _is_among(key: str, keys_or_sections: Iterable[str]) -> bool:
    return key in keys_or_sections or key.partition(".")[0] in keys_or_sections


def _plain(config: Config) -> dict[str, Any]:
    """Nested dicts, in which tuples are lists."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def _without(tree: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Nested dicts without the keys of NOT_PUBLISHED."""
    return {
        name: _without(value, f"{prefix}{name}.") if isinstance(value, dict) else value
        for name, value in tree.items()
        if not _is_among(f"{prefix}{name}", NOT_PUBLISHED)
    }


def _read_published(folder: Path) -> Config:
    """The config of a published model, whom anybody may have written: it names no file.

    Raises UserError for one that does, and for links of the folder that lead out of it.
    """
    for path in sorted(folder.iterdir()):
        check_link(path, folder)
    path = folder / RUN_CONFIG
    where, known = f" in {path}", keys.keys_of(Config)
    given = keys.dotted(known, keys.read_yaml(str(path)), where)
    for key in given:
        if key == keys.BASE or _is_among(key, NOT_PUBLISHED):
            raise UserError(
                f"{key}{where} is not for a published model, which names no other files and "
                "nothing of a machine: leave it out"
            )
    values = keys.read_keys(known, given, where)
    used = {key: value for key, value in values.items() if _is_among(key, USED_OF_PUBLISHED)}
    return replaced(Config(), used, where)


def _check(config: Config) -> None:
    """Raises UserError where a number is not finite, or keys do not fit each other."""
    for key, value in keys.flat(config):
        numbers = value if isinstance(value, tuple) else [value]
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            raise UserError(f"{key} must be finite, not {shortened(shown_as(value))}")
    _check_section(config)


def _check_section(section: Any) -> None:
    """Check what a section is made of before itself."""
    for part in dataclasses.fields(section):
        value = getattr(section, part.name)
        if dataclasses.is_dataclass(value):
            _check_section(value)
    if hasattr(section, "check"):
        section.check()
