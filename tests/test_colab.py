from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from chns_jax.reports import speaker_page

ROOT = Path(__file__).parents[1]
TRAINING, COMPARING = (ROOT / "colab" / name for name in ("chns_tpu.ipynb", "verify.ipynb"))
LEFT_OUT = {"install", "drive"}  # the package is installed, and there is no Drive


SMALLER = [
    "--training.steps", "4", "--validation.every", "2", "--training.devices", "1",
    "--data.voices.speakers", "12", "--encoder.ecapa.channels", "[8,8,16]",
    "--encoder.ecapa.kernel_sizes", "[5,3,1]", "--encoder.ecapa.dilations", "[1,2,1]",
]  # fmt: skip


def executed(path, folder, given):
    """The code cells of a notebook after it ran from top to bottom, but for its installation."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [c for c in notebook.cells if not LEFT_OUT & set(c.metadata.get("tags", ()))]
    assert len(notebook.cells) > len(cells)
    parameters = next(c for c in cells if "parameters" in c.metadata.get("tags", ()))
    parameters.source += "".join(f"\n{name} = {value!r}" for name, value in given.items())
    notebook.cells = cells
    options = {"timeout": 300, "resources": {"metadata": {"path": str(folder)}}}
    NotebookClient(notebook, kernel_name="python3", **options).execute()
    return [c for c in cells if c.cell_type == "code"]


def shown(cells):
    """What the cells show, not what they print."""
    return [output.data for c in cells for output in c.outputs if "data" in output]


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of jupyter_client and zmq
def test_the_training_notebook_runs_from_top_to_bottom(tmp_path):
    runtime = tmp_path / "onnxruntime-web"
    (runtime / "dist").mkdir(parents=True)
    for name in (speaker_page.GLUE, speaker_page.WASM):
        (runtime / "dist" / name).touch()
    given = {
        "REPOSITORY": str(ROOT),
        "CONFIG": "debug",
        "OUT": str(tmp_path / "run"),
        "MORE": [*SMALLER, "--data.cache", str(tmp_path / "cache")],
        "RUNTIME": str(runtime),
    }
    found = shown(executed(TRAINING, tmp_path, given))
    assert (tmp_path / "run" / "summary.json").exists()
    assert any("image/png" in data for data in found)
    assert any("same speaker" in data["text/plain"] for data in found)
    assert "speaker.onnx" in found[-1]["text/plain"]
    assert (tmp_path / "run-page" / "index.html").is_file()


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_the_comparing_notebook_runs_from_top_to_bottom(tmp_path):
    cells = executed(COMPARING, tmp_path, {"REPOSITORY": str(ROOT)})
    compared, card = shown(cells)
    assert "log_likelihood_ratio" in compared["text/plain"]
    assert card["text/markdown"].strip().startswith("# box")
    printed = "".join(output.text for c in cells for output in c.outputs if "text" in output)
    assert '"nearest": [{"name": "one"' in printed


@pytest.mark.parametrize("path", [TRAINING, COMPARING], ids=lambda path: path.stem)
def test_a_notebook_holds_no_logic_and_no_output(path):
    notebook = nbformat.read(path, as_version=4)
    for cell in (c for c in notebook.cells if c.cell_type == "code"):
        assert not cell.outputs and cell.execution_count is None
        for word in ("def ", "class ", "for ", "while ", "if "):
            assert not any(line.startswith(word) for line in cell.source.splitlines()), word
