import json
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

import chns_jax
from chns_jax.common.command_line import make_parser, parse
from chns_jax.common.errors import UserError
from chns_jax.common.values import OpenUnitInterval, PositiveInt, in_words, read_value

COMMANDS = sorted(
    path.stem
    for path in Path(chns_jax.__file__).parent.glob("*.py")
    if "\n    run(main)" in path.read_text()
)
HEAVY = {
    "jax",
    "flax",
    "optax",
    "orbax",
    "grain",
    "sklearn",
    "librosa",
    "matplotlib",
    "torch",
    "onnx",
}


def test_help_and_mistakes_do_not_wait_for_heavy_imports(tmp_path):
    """All commands in one process, which reports what --help and mistakes imported."""
    run, gone = tmp_path / "run", str(tmp_path / "gone.wav")
    run.mkdir()
    (run / "config.yaml").write_text("training: {steps: 5}")
    model, trials = ["--model", str(run)], ["--trials", gone, "--root", str(tmp_path)]
    mistakes = [
        ["gallery", "list", "--gallery", __file__],
        ["gallery", "remove", "a", "--gallery", gone],
        ["train", "--sampler.speakers", "1"],
        ["study", "lab/folder", "--trials", gone, "--replicates", "1"],
        ["train", "--config", gone],
        ["study", "lab/folder", "--data.trials", gone],
        ["rehearse", "--config", gone],
        ["verify", __file__, gone, *model],
        ["verify", __file__, __file__, "--model", gone],
        ["gallery", "identify", gone, "--gallery", gone, *model],
        ["gallery", "enroll", "a", gone, "--gallery", gone, *model],
        ["evaluate", *model, *trials],
        ["calibrate", *model, *trials],
        ["compare", gone, *trials],
        ["embed", __file__, "--model", gone, "--out", gone],
        ["segments", gone, *model],
        ["page", gone, "--out", gone],
        ["explore", "--model", gone, "--root", gone, "--out", gone],
        ["cluster", "--model", gone, "--root", gone, "--out", gone],
        ["export", gone, gone, "--format", "onnx"],
    ]
    code = f"""
import contextlib, importlib, io, json, sys
import chns_jax
from chns_jax.common.errors import UserError
light = sorted(sys.modules)
helps, said = {{}}, {{}}
for name in {COMMANDS}:
    main = importlib.import_module(f"chns_jax.{{name}}").main
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main(["--help"])
    helps[name] = out.getvalue()
    try:
        main(["--spam", "1"])
    except UserError as error:
        said[name] = str(error)
sentences = []
for name, *argv in {mistakes}:
    try:
        importlib.import_module(f"chns_jax.{{name}}").main(argv)
    except UserError as error:
        sentences.append(str(error))
print(json.dumps([light, sorted(sys.modules), helps, said, sentences]))
"""
    child = subprocess.run(
        [sys.executable, "-c", code], check=True, text=True, stdout=subprocess.PIPE
    )
    light, imported, helps, said, sentences = json.loads(child.stdout)
    assert not HEAVY & set(imported)
    assert len(sentences) == len(mistakes)
    assert all(f"{gone} is not" in sentence for sentence in sentences[4:])
    assert not {"numpy", "yaml"} & set(light)  # `import chns_jax` alone
    assert set(helps) == set(said) == set(COMMANDS)
    assert all("usage: " in text and "--help" in text for text in helps.values())


def test_mistakes_are_sentences():
    parser = make_parser("")
    parser.add_argument("file", type=str)
    parser.add_argument("--names", type=PositiveInt, default=5, help="Names, at most. Or 95 %%.")
    parser.add_argument("--rate", type=OpenUnitInterval | None)
    parser.add_argument("--kind", type=Literal["a", "b"], nargs="+", default=[])
    parser.add_argument("--fast", type=bool, default=False)
    chosen = parse(parser, ["x", "--kind", "a", "b", "--fast", "true", "--rate", "0.5"])
    assert vars(chosen) == {"file": "x", "names": 5, "rate": 0.5, "kind": ["a", "b"], "fast": True}
    assert parse(parser, ["x"], {"names": 7}).names == 7
    for arguments, sentence in [
        (["x", "--names", "0"], "--names 0 must be an integer above 0 (Names, at most)"),
        (["x", "--rate", "1"], "--rate 1 must be a number above 0 and below 1 or null"),
        (["x", "--kind", "a", "c"], "--kind c must be a or b"),
        (["x", "--fast", "3"], "--fast 3 must be true or false"),
        (["x", "--nmaes", "3"], "--nmaes is unknown: did you mean --names?"),
        (["--zzz", "x", "y"], "--zzz is unknown"),
        (["--nmaes=3"], "--nmaes is unknown: did you mean --names?"),  # before what is missing
        (["-n", "3"], "-n is unknown"),
        (["", "--names", "3"], "file is empty: give text"),
        (["x", "--names", ""], "--names is empty: give an integer above 0 (Names, at most)"),
        (
            ["x", "--names", "010"],
            "--names 010 must be an integer above 0, in plain decimal digits",
        ),
        (["x", "--rate", "-1e-3"], "--rate -1e-3 must be a number above 0 and below 1 or null"),
        (["x", "--rate", "-inf"], "--rate -inf must be a number above 0 and below 1 or null"),
        (["x", "--names", "1e19"], "--names 1e19 must be an integer above 0 and below 2**63 (N"),
        (["x", "y"], "y is an argument too many: leave it out, or see --help"),
        ([], "the following arguments are required: file"),
    ]:
        with pytest.raises(UserError) as raised:
            parse(parser, arguments)
        assert str(raised.value).startswith(sentence)


@pytest.mark.parametrize(
    "annotation, given, value",
    [
        (int, "16_000", 16_000),
        (int, " 5\n", 5),
        (float | None, " 1e-3", 0.001),
        (int, 3.0, 3),
        (float, 3, 3.0),
        (float, "-.inf", float("-inf")),
        (str, "3", "3"),
        (str, "a\udcff", "a\udcff"),  # a byte of the name of a file
        (str | None, "null", None),
        (PositiveInt | Literal["never"], "never", "never"),
        (PositiveInt | Literal["never"], "7", 7),
        (tuple[int, ...], "[1, 2]", (1, 2)),
        (tuple[int, ...], "[]", ()),
        (tuple[float, float], [1, "2e-3"], (1.0, 0.002)),
        (bool, "false", False),
        (bool, True, True),
    ],
)
def test_values(annotation, given, value):
    read = read_value("x", annotation, given)
    assert (read, type(read)) == (value, type(value))
    assert read_value("x", annotation, read) == read


@pytest.mark.parametrize(
    "annotation, given",
    [
        (int, "٣"), (int, "0x1"), (int, "1:30"), (int, "010"), (float, "00.5"), (bool, "yes"),
        (str, "a\ud800"), (tuple[str, ...], ["a\udc00"]),
        (str, "a\0b"), (tuple[int, ...], "[010]"), (tuple[str, ...], ["a", ""]),
        (int, True), (int, "1.5"), (int, float("inf")), (int, float("nan")), (int, 2**63),
        (int, None), (float, "x"), (float, True), (float, 10**400), (str, 3), (str, None),
        (bool, 1), (bool, "1"), (bool, "["), (Literal["a"], "b"), (Literal["a"], []),
        (tuple[int, ...], "1"), (tuple[int, ...], "ab"), (tuple[int, ...], {1: 2}),
        (tuple[float, float], "[1]"), (tuple[float, float], "[1, 2, 3]"),
    ],
)  # fmt: skip
def test_values_of_another_type(annotation, given):
    with pytest.raises(UserError, match="^x .* in a.yaml must be .*(about it)"):
        read_value("x", annotation, given, about="about it. Not this.", where=" in a.yaml")


def test_types_in_words():
    assert in_words(tuple[PositiveInt, ...]).endswith("each an integer above 0")
    assert in_words(Literal["a", "b", "c"]) == "a, b or c"
    assert in_words(OpenUnitInterval | None) == "a number above 0 and below 1 or null"


def test_a_long_value_is_cut_short():
    with pytest.raises(UserError) as raised:
        read_value("x", PositiveInt, "y\n" * 999)
    assert len(str(raised.value)) < 200 and "\n" not in str(raised.value)


def test_help_that_cannot_be_written_is_an_error():
    parser = make_parser("a" * 20_000)
    with pytest.raises(OSError, match="No space left"), open("/dev/full", "w") as full:
        parser.print_help(full)
