"""The config: one frozen dataclass per concept, read from YAML and the command line.

`load(argv)` understands `--config file.yaml`, dotted overrides (`--sampler.hard_ratio 0.5`),
`--help` and `--print_config`.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings
from jsonargparse.typing import (
    ClosedUnitInterval,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

from chns_jax.common.command_line import make_parser, parse
from chns_jax.common.errors import UserError

BUILTIN_VOICES = "builtin:voices"
LONGEST_SECONDS = 600  # of a crop, or of a segment
LARGEST_SEED = 2**32 - 1  # of a larger one, JAX leaves out the upper bits
LAST_PORT = 65_535
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


@dataclass(frozen=True)
class Voices:
    """The built-in synthetic corpus."""

    speakers: PositiveInt = 400
    """Number of speakers."""
    utterances: PositiveInt = 8
    """Utterances of each speaker; each counts as a recording of its own."""
    seconds: PositiveFloat = 2.5
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
    trials: str | None = None
    """Validation trials, lines of "1 enrolment test"; their speakers never appear in training."""
    trials_root: str | None = None
    """Folder of the trials' files; data.root when not given."""
    held_out: NonNegativeInt = 0
    """Without trials: speakers of data.root kept out of training, from whom trials are made."""
    crop_seconds: PositiveFloat = 3.0
    """Length of a training crop; shorter utterances are repeated to fill it."""
    threads: PositiveInt = 8
    """Threads that decode audio."""
    cache: str = "~/.cache/chns_jax"
    """Folder for corpus indices and the built-in corpus."""
    voices: Voices = field(default_factory=Voices)


@dataclass(frozen=True)
class Features:
    """Log-mel features."""

    kind: Literal["speechbrain", "kaldi", "kaldi_hamming"] = "speechbrain"
    """Definition; kaldi_hamming: Hamming window and samples in the range of int16, as wespeaker's.
    Kaldi's own f_min is 20."""
    sample_rate: PositiveInt = 16_000
    """Hz; audio of other rates is resampled."""
    bands: PositiveInt = 80
    """Mel bands."""
    window_ms: PositiveFloat = 25.0
    """Length of an analysis window."""
    hop_ms: PositiveFloat = 10.0
    """Distance between windows."""
    f_min: float = 0.0
    """Lower edge of the lowest band, Hz."""
    f_max: float = 8_000.0
    """Upper edge of the highest band, Hz."""
    mean_normalise: bool = True
    """Subtract each band's mean over time."""

    @property
    def window(self) -> int:
        """Window length in samples."""
        return round(self.window_ms * self.sample_rate / 1000)

    @property
    def hop(self) -> int:
        """Hop in samples."""
        return round(self.hop_ms * self.sample_rate / 1000)


@dataclass(frozen=True)
class Ecapa:
    """ECAPA-TDNN: one entry for the first layer, one for each block, one for the aggregation."""

    channels: tuple[PositiveInt, ...] = (256, 256, 256, 256, 768)
    """Output channels."""
    kernel_sizes: tuple[PositiveInt, ...] = (5, 3, 3, 3, 1)
    """Taps of the convolutions."""
    dilations: tuple[PositiveInt, ...] = (1, 2, 3, 4, 1)
    """Frames between taps."""
    res2net_scale: PositiveInt = 8
    """Channel groups of a Res2Net block."""
    se_channels: PositiveInt = 128
    """Bottleneck of squeeze-and-excitation."""
    attention_channels: PositiveInt = 128
    """Bottleneck of the attentive pooling."""


@dataclass(frozen=True)
class ThinResNet:
    """ThinResNet-34 with squeeze-and-excitation: one entry for each stage."""

    layers: tuple[PositiveInt, ...] = (3, 4, 6, 3)
    """Residual blocks."""
    filters: tuple[PositiveInt, ...] = (16, 32, 64, 128)
    """Output channels."""
    pooling: Literal["sap", "asp"] = "asp"
    """sap: self-attentive; asp: attentive statistics."""
    attend_over: Literal["time", "frequency"] = "time"
    """What attention weighs; frequency: as the paper's code has it."""


@dataclass(frozen=True)
class Encoder:
    """What turns log-mel into a speaker embedding."""

    kind: Literal["ecapa_tdnn", "thin_resnet"] = "ecapa_tdnn"
    """Architecture."""
    embedding: PositiveInt = 192
    """Dimensions of a speaker embedding."""
    ecapa: Ecapa = field(default_factory=Ecapa)
    thin_resnet: ThinResNet = field(default_factory=ThinResNet)


@dataclass(frozen=True)
class Loss:
    """What training minimises."""

    kind: Literal["supcon", "hscl", "nt_xent", "aam_softmax"] = "supcon"
    """supcon: supervised contrastive; hscl: the same with hard negatives weighed by the loss;
    nt_xent: an utterance's only positive is its other view; aam_softmax: classification of
    speakers."""
    temperature: PositiveFloat = 0.1
    """Temperature of the softmax at the start."""
    learn_temperature: bool = True
    """Train the temperature with the encoder."""
    min_temperature: PositiveFloat = 0.01
    """The learned temperature never falls below this."""
    margin: NonNegativeFloat = 0.0
    """supcon: subtracted from the cosine of an anchor and its positive view; nt_xent: from what
    that cosine divided by the temperature is."""
    beta: NonNegativeFloat = 0.1
    """hscl: how much harder negatives outweigh others; 0: not at all."""
    aam_margin: NonNegativeFloat = 0.2
    """aam_softmax: added to the angle of an embedding and its own class, radians."""
    aam_scale: PositiveFloat = 30.0
    """aam_softmax: what cosines are multiplied by."""


@dataclass(frozen=True)
class Sampler:
    """What a batch is made of."""

    kind: Literal["chns", "random", "utterances"] = "chns"
    """chns: hard negatives from clusters of similar speakers; random: distinct speakers;
    utterances: single utterances, each of the corpus once an epoch (for aam_softmax)."""
    speakers: PositiveInt = 650
    """Speakers in a batch, two utterances each; with kind utterances, twice as many utterances."""
    hard_ratio: ClosedUnitInterval = 0.5
    """Share of a batch's speakers that come from clusters, 0 to 1."""
    clusters: PositiveInt = 50
    """Number of clusters K."""
    kmeans: Literal["auto", "full", "sampled"] = "auto"
    """full: k-means of all speakers; sampled: of a sixth of them, then ten iterations over all, for
    a fifth of the time; auto: full below 20,000 speakers."""
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
    utterances_per_speaker: PositiveInt = 10
    """Utterances embedded for a voiceprint, k."""
    normalise_first: bool = False
    """L2-normalise embeddings before averaging them to a voiceprint."""


@dataclass(frozen=True)
class Noise:
    """Noise added to training crops."""

    probability: ClosedUnitInterval = 0.0
    """Share of the crops."""
    root: str | None = None
    """Folder of noise. MUSAN's subfolders noise, music and speech count as what they are called,
    everything else as noise; a crop gets one of the kinds that are there."""
    noise_snr: tuple[float, float] = (0.0, 15.0)
    """Lowest and highest signal-to-noise ratio, dB."""
    music_snr: tuple[float, float] = (5.0, 15.0)
    """The same of music."""
    speech_snr: tuple[float, float] = (13.0, 20.0)
    """The same of babble."""
    talkers: tuple[PositiveInt, PositiveInt] = (3, 7)
    """Fewest and most recordings of speech that make babble."""


@dataclass(frozen=True)
class Reverberation:
    """Training crops as heard in a room."""

    probability: ClosedUnitInterval = 0.0
    """Share of the crops."""
    root: str | None = None
    """Folder of impulse responses; rooms are simulated when not given."""
    responses: PositiveInt = 200
    """Impulse responses in use: drawn from the folder, or simulated."""
    seconds: PositiveFloat = 0.5
    """Length to which they are cut."""


@dataclass(frozen=True)
class Speed:
    """Training crops played faster or slower, with their pitch."""

    probability: ClosedUnitInterval = 0.0
    """Share of the crops."""
    factors: tuple[PositiveFloat, ...] = (0.9, 1.1)
    """Speeds, of which each such crop gets one."""
    new_speakers: bool = False
    """A speaker at another speed counts as another speaker."""


@dataclass(frozen=True)
class SpecAugment:
    """Bands and stretches of time masked in the log-mel (Park et al. 2019)."""

    probability: ClosedUnitInterval = 0.0
    """Share of the crops."""
    time_masks: NonNegativeInt = 1
    """Stretches masked."""
    time_width: PositiveInt = 10
    """Frames in the longest one."""
    band_masks: NonNegativeInt = 1
    """Ranges of bands masked."""
    band_width: PositiveInt = 8
    """Bands in the widest one."""


@dataclass(frozen=True)
class Augment:
    """What is done to training crops: speed, then reverberation, noise, and SpecAugment."""

    noise: Noise = field(default_factory=Noise)
    reverberation: Reverberation = field(default_factory=Reverberation)
    speed: Speed = field(default_factory=Speed)
    spec_augment: SpecAugment = field(default_factory=SpecAugment)


@dataclass(frozen=True)
class Optimizer:
    """Adam with linear warm-up and cosine decay."""

    learning_rate: PositiveFloat = 0.01
    """At the end of the warm-up."""
    weight_decay: NonNegativeFloat = 2e-6
    """L2 penalty, added to the gradient."""
    temperature_learning_rate: PositiveFloat | None = None
    """Of the loss's temperature, in place of learning_rate; the same when not given."""
    warmup: ClosedUnitInterval = 0.1
    """Share of the steps in which the learning rate rises from 0."""


@dataclass(frozen=True)
class Training:
    """How long and how often."""

    steps: PositiveInt = 154_000
    """Number of updates."""
    start_from: str | None = None
    """Folder of a run whose encoder training begins with; its classes too, if they are the same."""
    seed: NonNegativeInt = 0
    """Seed of everything random in a run."""
    epoch_utterances: PositiveInt | None = None
    """Utterances in an epoch; all those of the training speakers when not given."""
    checkpoint_every: PositiveInt = 1000
    """Steps between checkpoints."""
    keep: PositiveInt = 2
    """Latest checkpoints kept, besides the one of lowest validation EER."""
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
    remat: bool = False
    """Make the activations of the encoder's blocks again for the gradient, instead of keeping
    them: less memory, a third more work. On a CPU it saves nothing: XLA makes them once there."""
    compilation_cache: str | None = "compiled"
    """Folder, relative to data.cache, for compiled programs, with which a run starts sooner when it
    is started again; null: none."""


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
    count: PositiveInt | None = None
    """Number of hosts."""
    index: NonNegativeInt | None = None
    """Which of them this is, from 0."""
    timeout: PositiveInt = 300
    """Seconds to wait at the start until all are there."""
    heartbeat: PositiveInt = 30
    """Seconds after which a host that gives no sign of life is lost, and all end."""


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


def load(argv: list[str] | None = None, description: str = "") -> Config:
    """The config that `argv` describes; `--config` files first, overrides after them, in order.

    A file may name another under `base`, relative to itself, which is read before it. Raises
    UserError for an unknown key, a value of a wrong type or one out of range.
    """
    parser = make_parser(description)
    add_keys(parser)
    return read(parser, sys.argv[1:] if argv is None else argv)


def add_keys(parser: ArgumentParser) -> None:
    """Let a command take `--config` and the keys of a config, for `read`."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser.add_argument(
        "--config", action="config", help="YAML file; of several, later ones win over earlier ones."
    )
    parser.add_argument(
        "--base", type=str, help="Only in a file: another, relative to it, that is read before it."
    )
    parser.add_class_arguments(Config)


def read(parser: ArgumentParser, arguments: list[str]) -> Config:
    """The config among the arguments of a command; raises UserError as `load` does."""
    arguments = _with_bases(arguments)
    try:
        chosen = parser.instantiate(parse(parser, arguments))
    except (UserError, TypeError) as error:
        files = [value for key, value in itertools.pairwise(arguments) if key == "--config"]
        where = f" (in {', '.join(files)} or on the command line)" if files else ""
        raise UserError(f"{error}{where}") from error
    config = Config(**{field.name: chosen[field.name] for field in dataclasses.fields(Config)})
    _check(config)
    return config


def _with_bases(arguments: list[str]) -> list[str]:
    """The arguments, with the base of each `--config` file before it."""
    expanded = []
    for i, argument in enumerate(arguments):
        path = None
        if argument.startswith("--config="):
            path = argument.removeprefix("--config=")
        elif i and arguments[i - 1] == "--config":
            path = argument
            expanded.pop()
        expanded += [argument] if path is None else _chain(path, ())
    return expanded


def _chain(path: str, above: tuple[str, ...]) -> list[str]:
    """`--config` for the bases of a file, outermost first, and for the file."""
    if path in above:
        raise UserError(f"{path} is its own base: remove the key base from one of {above}")
    base = None
    try:
        written = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
        base = written.get("base") if isinstance(written, dict) else None
    except (OSError, ValueError, yaml.YAMLError):
        pass  # parsing the file says what is wrong with it
    if not isinstance(base, str):
        return ["--config", path]
    return [*_chain(str(Path(path).parent / base), (*above, path)), "--config", path]


def to_yaml(config: Config) -> str:
    """The config as YAML, every key, that `load` reads again."""
    plain = json.loads(json.dumps(dataclasses.asdict(config)))  # tuples as lists, plain numbers
    return yaml.safe_dump(plain, sort_keys=False)


def differences(one: Config, other: Config) -> list[str]:
    """Keys that change what a run computes, and whose values differ."""
    mine, theirs = (dict(_flat(dataclasses.asdict(config))) for config in (one, other))
    return [key for key in mine if not _is_free(key) and mine[key] != theirs[key]]


def _is_free(key: str) -> bool:
    return key in FREE_TO_CHANGE or key.partition(".")[0] in FREE_TO_CHANGE


def _check(config: Config) -> None:
    """Raises UserError where a number is not finite, or keys do not fit each other."""
    for key, value in _flat(dataclasses.asdict(config)):
        numbers = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            raise UserError(f"{key} must be finite, not {value}")
    ecapa, sampler, features = config.encoder.ecapa, config.sampler, config.features
    layers = [len(ecapa.channels), len(ecapa.kernel_sizes), len(ecapa.dilations)]
    inner = ecapa.channels[1:-1]
    resnet = config.encoder.thin_resnet
    hosts = config.hosts
    given = [value is not None for value in (hosts.coordinator, hosts.count, hosts.index)]
    address, _, port = (hosts.coordinator or "").rpartition(":")
    noise, speed = config.augment.noise, config.augment.speed
    micro_batch = config.training.micro_batch
    hard_count = math.floor(sampler.hard_ratio * sampler.speakers + 1e-9)
    checks = [
        (
            len(resnet.layers) == len(resnet.filters),
            "encoder.thin_resnet.layers and filters need one entry a stage",
        ),
        (
            min(resnet.filters) >= 8,
            "encoder.thin_resnet.filters must be 8 or more: their gates have an eighth of them",
        ),
        (len(set(layers)) == 1 and layers[0] >= 3,
         "encoder.ecapa.channels, kernel_sizes and dilations need one entry a layer, 3 or more: "
         f"they have {layers[0]}, {layers[1]} and {layers[2]}"),
        (all(channels % ecapa.res2net_scale == 0 for channels in inner),
         f"encoder.ecapa.channels {list(inner)} of the blocks must be multiples of "
         f"encoder.ecapa.res2net_scale {ecapa.res2net_scale}"),
        (sampler.speakers >= 2, "sampler.speakers must be at least 2: the others are negatives"),
        (sampler.refresh_every != "never" or sampler.table or sampler.start_step
         or sampler.kind != "chns",
         "sampler.refresh_every never needs sampler.table, or a sampler.start_step at which "
         "the speakers are clustered once"),
        (sampler.kind != "utterances" or config.loss.kind == "aam_softmax",
         f"sampler.kind utterances gives no pairs, which loss.kind {config.loss.kind} needs: "
         "use sampler.kind random or chns"),
        (micro_batch is None or micro_batch > 1 and 2 * sampler.speakers % micro_batch == 0,
         f"training.micro_batch {micro_batch} must be 2 or more, and divide the "
         f"{2 * sampler.speakers} rows of a batch"),
        (config.training.batch_statistics != "easy" or sampler.kind != "chns"
         or hard_count < sampler.speakers,
         "training.batch_statistics easy needs rows that are not from clusters: lower "
         "sampler.hard_ratio"),
        (config.training.batch_statistics != "running" or sampler.kind != "chns"
         or sampler.start_step > 0 or config.training.start_from,
         "training.batch_statistics running needs random batches that make them: give a "
         "sampler.start_step, or training.start_from"),
        (config.loss.aam_margin < math.pi / 2, "loss.aam_margin must be below pi / 2 radians"),
        (not noise.probability or noise.root,
         "augment.noise.probability needs augment.noise.root, a folder of noise"),
        (all(low <= high for low, high in
             (noise.noise_snr, noise.music_snr, noise.speech_snr, noise.talkers)),
         "augment.noise: the lowest of a range must not lie above its highest"),
        (not speed.probability or (speed.factors and
                                   0.5 <= min(speed.factors) <= max(speed.factors) <= 2),
         "augment.speed.factors must be one or more speeds from 0.5 to 2"),
        (RESPONSE_SECONDS[0] <= config.augment.reverberation.seconds <= RESPONSE_SECONDS[1],
         "augment.reverberation.seconds must lie between {} and {}".format(*RESPONSE_SECONDS)),
        (config.training.seed <= LARGEST_SEED,
         f"training.seed {config.training.seed} must be {LARGEST_SEED} at most"),
        (config.augment.spec_augment.band_width <= features.bands,
         f"augment.spec_augment.band_width exceeds the {features.bands} bands"),
        (not sampler.refresh_ahead or not (hosts.detect or hosts.coordinator),
         "sampler.refresh_ahead works on one host: leave it 0 with hosts.*"),
        (0 <= features.f_min < features.f_max <= features.sample_rate / 2,
         "features.f_min and features.f_max must lie in order between 0 and half the sample rate"),
        (not any(given) or (all(given) and not hosts.detect),
         "hosts.coordinator, hosts.count and hosts.index are given together, and without "
         "hosts.detect"),
        (not all(given) or (address and port.isdecimal() and int(port) <= LAST_PORT),
         f"hosts.coordinator {hosts.coordinator} must be an address and a port, such as "
         "10.0.0.1:7890"),
        (not all(given) or hosts.index < hosts.count,
         f"hosts.index {hosts.index} must lie below hosts.count {hosts.count}: the first is 0"),
        (config.loss.min_temperature < config.loss.temperature,
         "loss.temperature must lie above loss.min_temperature"),
        (features.hop >= 1 and features.window >= 2,
         "features.window_ms and features.hop_ms must be at least a sample or two long"),
    ]  # fmt: skip
    for holds, sentence in checks:
        if not holds:
            raise UserError(sentence)
    reach = max(
        (taps - 1) * dilation
        for taps, dilation in zip(ecapa.kernel_sizes, ecapa.dilations, strict=True)
    )
    fewest = max(10, (reach + 1) // 2 + 1)  # reflection needs that many
    lengths = {
        "data.crop_seconds": config.data.crop_seconds,
        "validation.segment_seconds": config.validation.segment_seconds,
    }
    for key, seconds in lengths.items():
        if seconds is not None and not (
            fewest <= (seconds * features.sample_rate - features.window) / features.hop
            and seconds <= LONGEST_SECONDS
        ):
            raise UserError(
                f"{key} {seconds:g} must hold {fewest} frames at least, and {LONGEST_SECONDS} "
                "seconds at most"
            )


def _flat(tree: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
