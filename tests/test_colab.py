from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
PATH = ROOT / "colab" / "chns_tpu.ipynb"
LEFT_OUT = {"install", "drive"}  # the package is installed, and there is no Drive


SMALLER = [
    "--training.steps", "4", "--validation.every", "2", "--training.devices", "1",
    "--data.voices.speakers", "12", "--encoder.ecapa.channels", "[8,8,16]",
    "--encoder.ecapa.kernel_sizes", "[5,3,1]", "--encoder.ecapa.dilations", "[1,2,1]",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of jupyter_client and zmq
def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    notebook = nbformat.read(PATH, as_version=4)
    nbformat.validate(notebook)
    cells = [c for c in notebook.cells if not LEFT_OUT & set(c.metadata.get("tags", ()))]
    assert len(notebook.cells) - len(cells) == 2
    given = {
        "REPOSITORY": str(ROOT),
        "CONFIG": "debug",
        "OUT": str(tmp_path / "run"),
        "MORE": [*SMALLER, "--data.cache", str(tmp_path / "cache")],
    }
    parameters = next(c for c in cells if "parameters" in c.metadata.get("tags", ()))
    parameters.source += "".join(f"\n{name} = {value!r}" for name, value in given.items())
    notebook.cells = cells
    options = {"timeout": 300, "resources": {"metadata": {"path": str(tmp_path)}}}
    NotebookClient(notebook, kernel_name="python3", **options).execute()
    assert (tmp_path / "run" / "summary.json").exists()
    shown = [output for c in cells for output in c.get("outputs", ()) if "data" in output]
    assert any("image/png" in output.data for output in shown)
    assert "same speaker" in shown[-1].data["text/plain"]


def test_the_notebook_holds_no_logic_and_no_output():
    notebook = nbformat.read(PATH, as_version=4)
    for cell in (c for c in notebook.cells if c.cell_type == "code"):
        assert not cell.outputs and cell.execution_count is None
        for word in ("def ", "class ", "for ", "while ", "if "):
            assert not any(line.startswith(word) for line in cell.source.splitlines()), word
