from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dualform.errors import ConfigError, StorageError
from dualform.runs.sweep_folder import read_sweep, results_table, write_sweep, write_sweep_report
from tests.report.example_sweep import empty_sweep, example_sweep, sweep_over_k


@pytest.fixture(autouse=True)
def quick_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages are tested elsewhere."""
    monkeypatch.setattr("dualform.runs.sweep_folder.render_sweep", lambda sweep: f"<html>{sweep.name}</html>")


def test_a_written_sweep_is_read_back_unchanged(tmp_path):
    page = write_sweep(tmp_path / "sweep", example_sweep())
    assert page == tmp_path / "sweep" / "report.html"
    assert read_sweep(tmp_path / "sweep") == example_sweep()
    assert sorted(each.name for each in page.parent.iterdir()) == ["report.html", "results.parquet", "sweep.json"]


def test_the_table_has_a_row_a_group_and_learner(tmp_path):
    write_sweep(tmp_path, example_sweep())
    rows = pq.read_table(tmp_path / "results.parquet").to_pylist()
    assert len(rows) == 11 * 6
    result = example_sweep().groups[0].result
    assert result is not None
    row = next(each for each in rows if each["group"] == "smollm2-135m-sst2" and each["learner"] == "icl")
    assert (row["accuracy"], row["accuracy_low"], row["seeds"]) == (
        result.accuracy["icl"].mean,
        result.accuracy["icl"].ci95[0],
        3,
    )
    assert row["agreement_with_icl"] is None
    assert results_table(sweep_over_k()).to_pylist()[0]["options"] == '{"k": 16, "fold.method": "ridge"}'
    assert results_table(empty_sweep()).num_rows == 0


def test_the_report_is_written_again_and_nothing_else_is_changed(tmp_path):
    write_sweep(tmp_path, example_sweep())
    (tmp_path / "report.html").unlink()
    before = (tmp_path / "sweep.json").stat().st_mtime_ns
    assert write_sweep_report(tmp_path).read_text(encoding="utf-8") == "<html>six-tasks</html>"
    assert (tmp_path / "sweep.json").stat().st_mtime_ns == before


def test_a_folder_without_a_sweep_and_a_damaged_sweep_are_reported(tmp_path):
    with pytest.raises(ConfigError, match=r"has no sweep\.json\. Give the folder of a sweep"):
        read_sweep(tmp_path)
    (tmp_path / "sweep.json").write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match="is not a sweep that this version can read"):
        read_sweep(tmp_path)


def test_a_folder_in_place_of_a_file_is_reported(tmp_path: Path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(StorageError, match=r"cannot write .*file.* Free some space"):
        write_sweep(tmp_path / "file", empty_sweep())
