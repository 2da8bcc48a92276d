import dataclasses
import itertools
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml

from chns_jax import config as configs
from chns_jax.common.command_line import make_parser
from chns_jax.common.errors import UserError
from chns_jax.common.keys import flat, keys_of
from chns_jax.config import Config, Optimizer, Sampler
from chns_jax.corpus.noise import find_noise
from chns_jax.corpus.reader import Reader
from chns_jax.corpus.rirs import make_rirs
from chns_jax.corpus.speeds import with_speeds
from chns_jax.corpus.split import make_split
from chns_jax.encoders import make_encoder
from chns_jax.sampling import kmeans
from chns_jax.sampling.pipeline import training_batches
from chns_jax.training.optimizer import make_optimizer
from chns_jax.training.step import init, train_step

FOLDER = Path(__file__).parents[1] / "configs"
CONFIGS = sorted(set(FOLDER.rglob("*.yaml")) - set(FOLDER.rglob("*.study.yaml")))

HOSTS = ["--hosts.coordinator", "localhost:7890", "--hosts.count", "2", "--hosts.index", "0"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_loads_and_is_headed_by_what_to_expect(path):
    configs.load(["--config", str(path)])
    head = path.read_text().split("\nout:")[0]
    for word in (
        "python -m chns_jax.train --config",
        f"configs/{path.relative_to(FOLDER)}",
        "Hardware:",
        "EER",
    ):
        assert word in head, word


def test_a_base_is_read_first_wherever_the_program_stands(tmp_path):
    (tmp_path / "base.yaml").write_text("training: {steps: 5, seed: 3}\nout: base\n")
    (tmp_path / "middle.yaml").write_text("base: base.yaml\ntraining: {steps: 6}\n")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "top.yaml").write_text("base: ../middle.yaml\nout: top\n")
    (tmp_path / "over.yaml").write_text("training: {keep: 7}\n")
    path = str(tmp_path / "deep" / "top.yaml")
    config = configs.load(["--config", path, "--config", str(tmp_path / "over.yaml")])
    assert (config.out, config.training.seed, config.training.steps) == ("top", 3, 6)
    assert config.training.keep == 7
    assert configs.load([f"--config={path}", "--training.seed", "9"]).training.seed == 9
    assert "base" not in configs.to_yaml(config)


def test_bases_that_are_missing_or_go_round_are_named(tmp_path):
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    with pytest.raises(UserError, match="b.yaml"):
        configs.load(["--config", str(tmp_path / "a.yaml")])
    (tmp_path / "sub").mkdir()
    for base in ("a.yaml", "./sub/../a.yaml"):
        (tmp_path / "b.yaml").write_text(f"base: {base}\n")
        with pytest.raises(UserError, match="its own base: .* from [^(]*a.yaml or [^(]*b.yaml$"):
            configs.load(["--config", str(tmp_path / "a.yaml")])


def shrunk(cache, tones) -> list[str]:
    """Sizes for two steps on `tones`; the kinds of everything stay as the config has them."""
    return [
        "--encoder.ecapa.channels", "[8,8,16]", "--encoder.ecapa.kernel_sizes", "[5,3,1]",
        "--encoder.ecapa.dilations", "[1,2,1]", "--encoder.ecapa.res2net_scale", "2",
        "--encoder.ecapa.se_channels", "4", "--encoder.ecapa.attention_channels", "4",
        "--encoder.thin_resnet.layers", "[1,1]", "--encoder.thin_resnet.filters", "[8,8]",
        "--encoder.redimnet2.channels", "1", "--encoder.redimnet2.frequency_strides", "[2]",
        "--encoder.redimnet2.time_strides", "[2]", "--encoder.redimnet2.blocks", "[1]",
        "--encoder.redimnet2.expansions", "[1]", "--encoder.redimnet2.reductions", "[18]",
        "--encoder.embedding", "8",
        "--data.root", str(tones), "--data.cache", str(cache), "--data.held_out", "3",
        "--data.crop_seconds", "0.3", "--data.threads", "2", "--data.voices.speakers", "8",
        "--sampler.speakers", "4", "--sampler.clusters", "3", "--training.steps", "2",
    ]  # fmt: skip


STRATEGIES = ("supcon", "hscl", "chns", "chns_hscl", "aamsoftmax")
RUNS = [
    ["chns"],
    ["aamsoftmax"],
    *(pytest.param(names, marks=pytest.mark.long) for names in (
        ["supcon"], ["hscl"], ["chns_hscl"], ["chns_aug"], ["ntxent"],
        *([strategy, "thinresnet"] for strategy in STRATEGIES),
        ["chns", "ecapa512"], ["chns", "ecapa1024"], ["redimnet2_aam"], ["redimnet2_chns"],
        ["redimnet2_chns_hscl"], ["redimnet2_chns", "large_margin"],
    )),
]  # fmt: skip
PARAMETERS = {
    "thinresnet": 1_420_374, "ecapa512": 6_194_048, "ecapa1024": 14_660_416,
    "redimnet2_aam": 2_161_488, "redimnet2_chns": 2_161_488, "redimnet2_chns_hscl": 2_161_488,
    "large_margin": 2_161_488, "redimnet2_b0": 1_115_220, "redimnet2_b1": 2_161_488,
    "redimnet2_b2": 3_677_760, "redimnet2_b3": 4_181_576,
}  # fmt: skip
SIZES = {"redimnet2_aam": (512, 1.2), "large_margin": (650, 1e-4)}  # speakers, learning rate


def parameters(config) -> int:
    frames = jax.ShapeDtypeStruct((1, 50, config.features.bands), np.float32)
    encoder = make_encoder(config.encoder)
    shapes = jax.eval_shape(lambda x: encoder.init(jax.random.key(0), x, False), frames)
    return sum(x.size for x in jax.tree.leaves(shapes["params"]))


@pytest.mark.slow
@pytest.mark.parametrize("names", RUNS, ids="+".join)
def test_every_config_trains(names, tones, tmp_path):
    files = [word for name in names for word in ("--config", str(FOLDER / f"{name}.yaml"))]
    config = configs.load(files)
    assert parameters(config) == PARAMETERS.get(names[-1], 2_049_952)
    size = SIZES.get(names[-1], (650, 0.01))
    assert (config.sampler.speakers, config.optimizer.learning_rate) == size

    more = shrunk(tmp_path / "cache", tones)
    if config.augment.noise.probability:
        more += ["--augment.noise.root", str(tones), "--augment.reverberation.responses", "3"]
    config = configs.load([*files, *more])
    losses = two_steps(config)
    assert np.isfinite(losses).all() and len(losses) == 2


@pytest.mark.parametrize(
    "name, count",
    [
        ("redimnet2_b0", 703_060),
        ("redimnet2_b1", 1_254_992),
        ("redimnet2_b2", 2_530_208),
        ("redimnet2_b3", 2_364_712),
    ],
)
@pytest.mark.long
def test_wespeakers_redimnet2_has_its_size(name, count):
    keys = ["--encoder.redimnet2.head", "1d", "--encoder.redimnet2.head_channels", "64"]
    if name == "redimnet2_b3":
        keys += ["--encoder.redimnet2.expansions", "[2,1,1,1,1,1]"]
        keys += ["--encoder.redimnet2.reductions", "[36,36,36,36,18,18]"]
    config = configs.load(["--config", str(FOLDER / f"{name}.yaml"), *keys])
    assert parameters(config) == count


@pytest.mark.parametrize(
    "name",
    [
        "redimnet2_b0",
        "redimnet2_b1",
        *(pytest.param(f"redimnet2_b{i}", marks=pytest.mark.long) for i in (2, 3)),
    ],
)
def test_redimnet2_has_the_size_of_its_paper(name):
    """Which are 1.1, 2.1, 3.6 and 4.1 M there, rounded down."""
    config = configs.load(["--config", str(FOLDER / f"{name}.yaml")])
    assert parameters(config) == PARAMETERS[name]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_small_corpus_changes_sizes_and_no_strategy(strategy):
    def kinds(*names):
        files = [word for name in names for word in ("--config", str(FOLDER / f"{name}.yaml"))]
        config = configs.load(files)
        return config.loss.kind, config.sampler.kind, config.sampler.hard_ratio, config.loss.beta

    assert kinds(strategy, "small") == kinds(strategy)
    assert len({kinds(name, "small") for name in STRATEGIES}) == len(STRATEGIES)


def two_steps(config) -> list[float]:
    """Losses of two steps with batches of the corpus, hard ones if the config has them."""
    corpus = with_speeds(make_split(config).training, config.data.speeds)
    rate, seed = config.features.sample_rate, config.training.seed
    reader = Reader(corpus, rate, config.data.threads)
    table = None
    if config.sampler.kind == "chns":
        voiceprints = np.random.default_rng(0).normal(size=(len(corpus.speakers), 8))
        table = kmeans.cluster(voiceprints, config.sampler.clusters, seed=seed)
    encoder = make_encoder(config.encoder)
    tx = make_optimizer(config.optimizer, config.training.steps)
    state = jax.jit(partial(init, config, encoder, tx, len(corpus.speakers)))()
    update = partial(train_step, encoder=encoder, tx=tx, speakers=len(corpus.speakers))
    update = jax.jit(partial(update, config=config))
    batches = training_batches(
        reader, config.sampler, table, seed=seed, samples=config.read_samples,
        first_step=0, end_step=2, noise=find_noise(config.augment.noise, rate),
    )  # fmt: skip
    rirs = make_rirs(config.augment.reverberation, rate, seed)
    losses = []
    for batch in batches:
        state, metrics = update(state, batch, rirs)
        losses.append(float(metrics["loss"]))
    return losses


def test_the_papers_configs_have_its_settings():
    def read(name):
        return configs.load(["--config", str(FOLDER / f"{name}.yaml")])

    for name in ("chns", "chns_hscl", "chns_frozen"):
        config = read(name)
        sampler = config.sampler
        assert (sampler.hard_ratio, sampler.clusters, sampler.repeats) == (1.0, 50, False)
        assert (sampler.utterances_per_speaker, sampler.start_step) == (10, 2 * 770)
        assert config.training.steps == 200 * 770 and config.training.batch_statistics == "all"
        assert sampler.refresh_every == ("never" if name == "chns_frozen" else 5)
        assert config.optimizer == Optimizer(learning_rate=0.01, weight_decay=2e-6, warmup=0.1)
        assert config.loss.temperature == 0.1 and config.loss.learn_temperature
        # Validation speakers are of VoxCeleb2: VoxCeleb1's lists are for testing.
        assert config.data.trials is None and config.data.held_out > 0
    assert read("chns_hscl").loss.beta == 0.1


def test_a_config_written_is_the_config_read(tmp_path):
    arguments = ["--sampler.hard_ratio", "0.25", "--encoder.ecapa.channels", "[8,8,16]"]
    arguments += ["--encoder.ecapa.kernel_sizes", "[5,3,1]", "--encoder.ecapa.dilations", "[1,2,1]"]
    config = configs.load([*arguments, "--data.trials", "list.txt", "--data.more_roots", "[a,b]"])
    (tmp_path / "config.yaml").write_text(configs.to_yaml(config))
    again = configs.load(["--config", str(tmp_path / "config.yaml")])
    assert again == config and not configs.differences(again, config)
    assert config.sampler.hard_ratio == 0.25 and list(config.data.more_roots) == ["a", "b"]


def test_overrides_come_after_files(tmp_path):
    (tmp_path / "a.yaml").write_text("training: {steps: 5, seed: 3}\nsampler: {kind: random}\n")
    (tmp_path / "b.yaml").write_text("training: {steps: 6}\n")
    files = ["--config", str(tmp_path / "a.yaml"), "--config", str(tmp_path / "b.yaml")]
    config = configs.load([*files, "--training.seed", "9"])
    assert (config.training.steps, config.training.seed, config.sampler.kind) == (6, 9, "random")


def test_hosts_may_be_others_when_a_run_goes_on():
    assert configs.differences(configs.load([]), configs.load(HOSTS)) == []


def test_differences_name_the_keys_that_matter():
    one = Config()
    other = Config(out="elsewhere", sampler=dataclasses.replace(one.sampler, hard_ratio=0.9))
    assert configs.differences(one, other) == ["sampler.hard_ratio"]
    moved = dataclasses.replace(one.training, compilation_cache=None, keep=5)
    assert not configs.differences(one, dataclasses.replace(one, training=moved))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--training.stepz", "3"], "training.stepz is unknown: did you mean --training.steps?"),
        (["--training.stepz=3"], "training.stepz is unknown: did you mean --training.steps?"),
        (["--training.steps"], "training.steps: expected one argument"),
        (["--training.steps", "many"], "training.steps many must be an integer from 1 to"),
        (["--training.steps", "0"], "training.steps 0 must be an integer from 1 to"),
        (["--training.steps", "2.5"], "training.steps 2.5 must be an integer from 1 to"),
        (["--training.seed", "-1"], "training.seed -1 must be an integer from 0 on"),
        (["--training.micro_batch", "x"], "micro_batch x must be an integer above 0 or null"),
        (["--training.remat", "2"], "training.remat 2 must be true or false"),
        (["--sampler.kind", "hardest"], "kind hardest must be chns, random or utterances"),
        (["--sampler.refresh_every", "0"], "refresh_every 0 must be an integer above 0 or never"),
        (
            ["--sampler.hard_ratio", "1.5"],
            r"hard_ratio 1.5 must be a number from 0 to 1 \(Share of a batch's speakers that",
        ),
        (["--encoder.ecapa.channels", "[8,0]"], r"channels \[8,0\] must be .* each an integer fro"),
        (["--encoder.ecapa.channels", "8"], "channels 8 must be a list such as"),
        (["--augment.noise.talkers", "[1,2,3]"], "must be a list of 2, each an integer from 1"),
        (["--data.more_roots", "[a"], r"more_roots \[a must be a list such as"),
        (["--base", "a.yaml"], "--base is only for files: give --config a.yaml"),
        (["--sampler.speakers", "1"], "sampler.speakers must be at least 2"),
        (["--sampler.refresh_every", "never"], "sampler.refresh_every never needs sampler.table"),
        (["--encoder.ecapa.channels", "[8, 8]"], "need one entry a layer"),
        (
            ["--encoder.thin_resnet.layers", "[]", "--encoder.thin_resnet.filters", "[]"],
            "layers and filters need one entry a stage",
        ),
        (["--encoder.ecapa.channels", "[8,9,9,9,8]"], "must be multiples of"),
        (["--features.f_max", "9000"], "features.f_max"),
        (["--loss.temperature", "0.001"], "loss.temperature must lie above"),
        (["--data.crop_seconds", "0.02"], "data.crop_seconds"),
        (["--data.crop_seconds", "inf"], "data.crop_seconds"),
        (
            ["--optimizer.learning_rate", "inf"],
            "learning_rate inf must be a number from 1e-10 to 100",
        ),
        (
            ["--augment.noise.noise_snr", "[0,.inf]"],
            r"noise_snr \[0,.inf\] must be a list of 2, each a number from -100 to 100",
        ),
        (["--features.f_min", ".nan"], "features.f_min must be finite"),
        (["--features.window_ms", "inf"], "features.window_ms must be finite"),
        (["--training.seed", "4294967296"], "training.seed 4294967296 must be 4294967295 at most"),
        (["--augment.reverberation.seconds", "1e9"], "seconds must lie between 0.05 and 10.0"),
        (["--augment.reverberation.seconds", "0.01"], "seconds must lie between 0.05 and 10.0"),
        (["--validation.segment_seconds", "0.03"], "validation.segment_seconds"),
        (["--encoder.ecapa.dilations", "[1,400,3,4,1]"], "data.crop_seconds 3 must hold 401"),
        (["--encoder.thin_resnet.filters", "[4,8,8,8]"], "encoder.thin_resnet.filters"),
        (["--encoder.redimnet2.blocks", "[1]"], "blocks, .* one entry a stage, .* 6, 6, 1, 6, 6"),
        (["--encoder.kind", "redimnet2", "--features.bands", "60"], "must be a multiple of 8"),
        (
            ["--encoder.kind", "redimnet2", "--encoder.redimnet2.channels", "3"],
            "encoder.redimnet2.reductions .* must leave a multiple of 4",
        ),
        (
            ["--encoder.kind", "redimnet2", "--encoder.redimnet2.group_norm", "7"],
            "must divide 1280",
        ),
        (["--encoder.redimnet2.time_strides", "[9,9,9,1,1,1]"], "crop_seconds 3 must hold 729"),
        (["--sampler.kind", "utterances"], "sampler.kind utterances gives no pairs"),
        (["--augment.noise.probability", "0.5"], "augment.noise.root"),
        (["--augment.noise.music_snr", "[9,5]"], "augment.noise: the lowest"),
        (["--augment.speed.factors", "[0.1]", "--augment.speed.probability", "1"], "0.5 to 2"),
        (["--augment.spec_augment.band_width", "81"], "augment.spec_augment.band_width"),
        (["--loss.aam_margin", "1.6"], "loss.aam_margin"),
        (
            ["--training.micro_batch", "300"],
            "training.micro_batch 300 must .* divide the 1300 rows",
        ),
        (["--training.micro_batch", "1"], "training.micro_batch 1 must be 2 or more"),
        (["--training.compute", "float16"], "training.compute"),
        (["--features.hop_ms", "0.001"], "features.hop_ms"),
        (["--hosts.coordinator", "a:1"], "hosts.index are given together"),
        ([*HOSTS, "--hosts.detect", "true"], "without hosts.detect"),
        ([*HOSTS, "--hosts.coordinator", "10.0.0.1"], "such as 10.0.0.1:7890"),
        ([*HOSTS, "--hosts.index", "2"], "hosts.index 2 must lie below hosts.count 2"),
        (["--config", "gone.yaml"], "gone.yaml"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(UserError, match=message) as raised:
        configs.load(arguments)
    assert "\n" not in str(raised.value)


def test_mistakes_in_a_file_are_named(tmp_path):
    for text, message in [
        ("training: {stepz: 3}", "training.stepz in .*c.yaml is unknown: did you mean training.st"),
        ("trainin: {steps: 3}", "trainin in .*c.yaml is unknown"),
        ("training: [", "c.yaml is not YAML in line 1: expected the node content"),
        ("a: b\n\tc: d", "c.yaml is not YAML in line 2"),
        (
            "out: !!python/none",
            "c.yaml line 1 has the tag tag:yaml.org,2002:python/none: leave it out",
        ),
        ("3", "c.yaml holds no keys of a config"),
        ("sampler: 5", "sampler in .*c.yaml is a section: write its keys under it, not 5"),
        ("sampler: {hard_ratio: 2}", "sampler.hard_ratio 2 in .*c.yaml must be a number from 0 to"),
        ("out: 3", "out 3 in .*c.yaml must be text in quotes"),
        (
            "data: {trials: false}",
            "data.trials false in .*c.yaml must be text in quotes, null or a list such as",
        ),
        ("training: {steps: true}", "training.steps true in .*c.yaml must be an integer"),
        ("training: {steps: null}", "training.steps null in .*c.yaml must be an integer"),
        ("training: {steps: [3]}", r"training.steps \[3\] in .*c.yaml must be an integer"),
        ("base: [a]", "base .*c.yaml must be text in quotes"),
        ("data: {more_roots: [1]}", r"more_roots \[1\] .* each text in quotes"),
    ]:
        (tmp_path / "c.yaml").write_text(text)
        with pytest.raises(UserError, match=message):
            configs.load(["--config", str(tmp_path / "c.yaml")])


LONG = "k" * 1000


def test_what_is_long_is_not_repeated_whole(tmp_path):
    path = tmp_path / "c.yaml"
    for text in (
        f"{LONG}: 3", f"training: {{{LONG}: 3}}", f"{LONG}: 1\n{LONG}: 2", f"out: [{LONG}]",
        f"out: *{LONG}", f"out: !{LONG} x", f"sampler: [{LONG}]", f"sampler: [{'1, ' * 999}1]",
        f"out: &{LONG} [*{LONG}]",
    ):  # fmt: skip
        path.write_text(text)
        with pytest.raises(UserError) as raised:
            configs.load(["--config", str(path)])
        assert len(str(raised.value).replace(str(path), "")) < 300
    for name in ("--", "-", "", "--config=", "--training.steps="):
        with pytest.raises(UserError) as raised:
            configs.load([name + LONG])
        assert len(str(raised.value)) < 500


def test_what_yaml_takes_for_text_may_be_a_number(tmp_path):
    text = "optimizer: {learning_rate: 1e-4}\ntraining: {steps: 1e3, keep: 5.0}\nsampler:\n"
    (tmp_path / "c.yaml").write_text(text)
    config = configs.load(["--config", str(tmp_path / "c.yaml"), "--loss.beta", "1"])
    assert (config.optimizer.learning_rate, config.training.steps) == (1e-4, 1000)
    numbers = config.training.steps, config.training.keep, config.loss.beta
    assert [type(number) for number in numbers] == [int, int, float]


@pytest.mark.parametrize(
    "text",
    ["", "# nothing\n", "---\n", "training:\n#  steps: 5\n", "training: {}\ndata:\n  voices:\n"],
)
def test_what_is_empty_is_as_by_default(text, tmp_path):
    (tmp_path / "c.yaml").write_text(text)
    assert configs.load(["--config", str(tmp_path / "c.yaml")]) == Config()


def test_few_aliases_are_values(tmp_path):
    (tmp_path / "c.yaml").write_text("loss: {beta: &b 0.5, margin: *b}\n")
    config = configs.load(["--config", str(tmp_path / "c.yaml")])
    assert config.loss.beta == config.loss.margin == 0.5


def test_a_config_that_was_edited_is_named():
    config = Config(out="elsewhere", optimizer=Optimizer(learning_rate=0.02))
    saved = configs.to_yaml(Config()).replace("keep: 2", "gone: 3")
    with pytest.raises(UserError, match=r"put back optimizer.learning_rate \(was 0.01\)$"):
        configs.check_unedited(config, saved, "run")
    configs.check_unedited(config, saved, "run", ("features", "encoder"))
    configs.check_unedited(config, "", "run")
    for damaged in ("[", "out", "- out"):
        with pytest.raises(UserError, match="of run is damaged"):
            configs.check_unedited(config, damaged, "run")


def test_one_list_of_trials_or_several(tmp_path):
    (tmp_path / "c.yaml").write_text("data: {trials: [a.txt, b c.txt]}")
    of_file = configs.load(["--config", str(tmp_path / "c.yaml")])
    assert of_file.data.trials == ("a.txt", "b c.txt")
    (tmp_path / "again.yaml").write_text(configs.to_yaml(of_file))
    assert configs.load(["--config", str(tmp_path / "again.yaml")]) == of_file
    for given, read in [
        ("[a.txt,b.txt]", ("a.txt", "b.txt")), ("a.txt", "a.txt"), ("7", "7"), ("[a", "[a"),
        ("a: b", "a: b"), ("@a", "@a"),
    ]:  # fmt: skip
        assert configs.load(["--data.trials", given]).data.trials == read


def test_null_is_nothing():
    assert configs.load(["--data.trials", "null"]).data.trials is None
    assert configs.load(["--training.micro_batch", "null"]).training.micro_batch is None
    assert configs.load(["--out", "null"]).out == "null"


def test_what_is_given_beats_defaults(tmp_path):
    def read(*argv):
        parser = make_parser("")
        configs.add_keys(parser)
        defaults = {"sampler.speakers": 7, "loss.kind": "hscl", "encoder.ecapa.dilations": [1] * 5}
        return configs.read(parser, list(argv), defaults=defaults)

    (tmp_path / "c.yaml").write_text("sampler: {speakers: 8}\n")
    config = read("--config", str(tmp_path / "c.yaml"), "--loss.kind", "nt_xent")
    assert (config.sampler.speakers, config.loss.kind) == (8, "nt_xent")
    assert config.encoder.ecapa.dilations == (1,) * 5
    assert (read().sampler.speakers, read().loss.kind) == (7, "hscl")
    assert configs.load([]).sampler.speakers == Sampler().speakers


def test_a_printed_config_is_the_config(tmp_path, capsys):
    arguments = ["--sampler.hard_ratio", "0.25", "--data.more_roots", "[a,b]"]
    with pytest.raises(SystemExit) as stopped:
        configs.load([*arguments, "--print_config"])
    assert not stopped.value.code
    (tmp_path / "c.yaml").write_text(capsys.readouterr().out)
    assert configs.load(["--config", str(tmp_path / "c.yaml")]) == configs.load(arguments)


def test_every_key_is_explained():
    for name, key in keys_of(Config).items():
        assert key.about.endswith((".", ":")) and key.section_about, name
    assert [name for name, _ in flat(Config())] == [
        name for name in yaml_keys(yaml.safe_load(configs.to_yaml(Config())))
    ]
    assert {name: key.default for name, key in keys_of(Config).items()} == dict(flat(Config()))


def yaml_keys(tree, prefix=""):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from yaml_keys(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


ODD = [
    None, True, "", "x", "null", "never", ".nan", "[", "{", "[[]]", "é", "9" * 400, 0, -1, 1, 2, 9,
    1e-300, 1e300, 10**400, float("inf"), float("nan"), [], [0], [1], [8], [1.5, None], ["a", "b"],
    [8, 8, 8], [[]], [1] * 5, [10**400, 1], {}, {"a": 1},
]  # fmt: skip


def test_odd_values_are_named_or_taken():
    """Of each key alone, of each two sequences of a section, and of all optional keys together."""

    def load(values):
        try:
            config = configs.read(parser, [], defaults=values)
            return config.crop_samples, config.read_samples, config.segment_samples
        except UserError as error:
            assert "\n" not in str(error)
            return None

    parser = make_parser("")
    configs.add_keys(parser)
    keys = keys_of(Config)
    taken = [load({name: value}) is not None for name in keys for value in ODD]
    assert {False, True} == set(taken)
    sequences = [name for name, key in keys.items() if isinstance(key.default, tuple)]
    more = {"augment.speed.probability": 1, "augment.noise.probability": 1}
    for one, other in itertools.permutations(sequences, 2):
        if one.rpartition(".")[0] == other.rpartition(".")[0]:
            for a, b in itertools.product(([], [0], [1], [8, 8, 8], [1] * 5), repeat=2):
                load({one: a, other: b, **more})
    for value in ODD:
        load({name: value for name in sequences} | more)
        optional = [name for name, key in keys.items() if key.default is None]
        for name in optional:
            load({other: value for other in optional if other != name})


def test_no_number_is_absurd():
    """No key of numbers takes what float32 does not hold."""
    parser = make_parser("")
    configs.add_keys(parser)
    for name, key in keys_of(Config).items():
        if "str" in str(key.annotation):
            continue
        for value in ("1e39", "-1e39", "inf", "nan"):
            with pytest.raises(UserError):
                given = f"[{value},{value}]" if isinstance(key.default, tuple) else value
                configs.read(parser, [], defaults={name: given})


def test_odd_words_of_a_command_line_are_named_or_taken():
    words = ["", "[]", "[", "{}", "null", "~", "&a [*a]", "2024-13-45", "1e999", "-1", "%s"]
    parser = make_parser("")
    configs.add_keys(parser)
    for name, word in itertools.product(keys_of(Config), words):
        try:
            configs.read(parser, [f"--{name}={word}"])
        except UserError as error:
            assert "\n" not in str(error)


def test_clustering_once_is_a_start_step_without_refreshes():
    arguments = ["--sampler.refresh_every", "never", "--sampler.start_step", "100"]
    assert configs.load(arguments).sampler == Sampler(refresh_every="never", start_step=100)


def test_a_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "c.yaml").write_bytes(bytes([0, 1, 255]))
    with pytest.raises(UserError, match="c.yaml"):
        configs.load(["--config", str(tmp_path / "c.yaml")])
