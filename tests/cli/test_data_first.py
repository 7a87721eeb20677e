"""Data are checked before the large libraries are loaded, and a run that fails at once leaves no folder."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import QUICK, Done

_CHECK = """
import sys
from dualform.cli.main import app
sys.argv = ["dualform", *sys.argv[1:]]
try:
    app()
except SystemExit as end:
    heavy = sorted({"torch", "transformers", "datasets"} & set(sys.modules))
    print("heavy:", heavy, "code:", end.code)
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["compare", "nowhere", "bad.csv"],
        ["stability", "nowhere", "--task", "bad.csv"],
        ["selection", "nowhere", "bad.csv"],
        ["fold", "nowhere", "bad.csv", "--to", "folded"],
        ["folding", "nowhere", "bad.csv"],
        ["plan", "compare", "nowhere", "bad.csv"],
        ["sweep", "grid.yaml"],
        ["plan", "sweep", "grid.yaml"],
    ],
)
def test_bad_data_are_reported_before_a_models_libraries_are_loaded(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "bad.csv").write_text("text,label\n,0\na,1\nb,\n")
    (tmp_path / "grid.yaml").write_text("models: [nowhere]\ntasks: [bad.csv]\nseeds: 1\n")
    done = subprocess.run(
        [sys.executable, "-c", _CHECK, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert "heavy: [] code: 2" in done.stdout, done.stdout + done.stderr
    assert "line 2: the text of 'text' is empty" in done.stderr
    assert "line 4: column 'label' has no label" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.csv", "grid.yaml"]


def test_a_run_that_fails_before_it_kept_anything_leaves_no_folder(
    dualform: Callable[..., Done], tmp_path: Path
) -> None:
    done = dualform("compare", "gpt2", "tickets.csv", *QUICK, "--context", "8", "--out", tmp_path / "a" / "run")
    assert done.code == 2
    assert list(tmp_path.iterdir()) == []
