"""Every name that the code uses is defined somewhere, but for those of axes in shapes."""

import ast
import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def undefined_names(*paths: Path) -> list[str]:
    """Of Python files and folders, as ruff finds them, without those in the strings of
    `Float[Array, "b d"]`, which ruff takes for types."""
    rule = ["--isolated", "--no-cache", "--select", "F821", "--output-format", "json"]
    command = [sys.executable, "-m", "ruff", "check", *rule, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    return [
        f"{found['filename']}:{found['location']['row']}: {found['message']}"
        for found in json.loads(done.stdout)
        if (found["location"]["row"], found["location"]["column"])
        not in _places_in_shapes(found["filename"])
    ]


def _places_in_shapes(path: str) -> set[tuple[int, int]]:
    """Line and column, from 1, of each character of the shapes in a file."""
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    return {
        (shape.lineno, 1 + column)
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Tuple)
        for shape in node.slice.elts[1:]
        if isinstance(shape, ast.Constant) and isinstance(shape.value, str)
        for column in range(shape.col_offset, shape.end_col_offset)
    }


def test_every_name_is_defined():
    assert undefined_names(HERE.parent / "chns_jax", HERE) == []


def test_a_name_that_nobody_defines_is_found_and_an_axis_is_none(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(
        "from jaxtyping import Array, Float\n\n\n"
        'def f(x: Float[Array, " rows"]) -> Float[Array, "rows"]:\n'
        '    return x[f"{missing}", "x"]\n'
    )
    assert [line.partition(": ")[2] for line in undefined_names(path)] == [
        "Undefined name `missing`"
    ]
