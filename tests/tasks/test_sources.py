import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from dualform.errors import HubError, TaskError
from dualform.tasks import packaged
from dualform.tasks.demonstrations import draw_demonstrations
from dualform.tasks.sources import available_tasks, load_task
from dualform.tasks.task_source import TaskSummary


@pytest.fixture(autouse=True)
def _no_data_variable(monkeypatch):
    monkeypatch.delenv("DUALFORM_DATA", raising=False)


@pytest.fixture
def sst2(write_directory, rows):
    return write_directory("sst2", {"train": rows("t", 20), "validation": rows("v", 4), "test": rows("q", 6)})


@pytest.fixture
def tickets(tmp_path):
    path = tmp_path / "tickets.csv"
    path.write_text("body,urgent\n" + "".join(f"ticket {i},{i % 2}\n" for i in range(40)))
    return path


def test_a_known_task_is_found_by_name_in_the_data_folder(sst2, monkeypatch):
    task = load_task("sst2", data_dir=sst2.parent)
    assert (task.name, task.source, task.paper_split) == ("sst2", str(sst2), "validation")
    assert task.label_words == ("Negative", "Positive")
    assert task.label_names == ("negative", "positive")
    monkeypatch.setenv("DUALFORM_DATA", str(sst2.parent))
    assert load_task("sst2") == task


def write_glue(folder: Path, rows: Sequence[Mapping[str, Any]], queries: Sequence[Mapping[str, Any]]) -> None:
    """GLUE's files next to a folder's own splits, as public copies have them."""
    (folder / "phrases.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    (folder / "glue.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    about = json.loads((folder / "dataset.json").read_text())
    about["extra_files"] = {"train_phrases": {"file": "phrases.jsonl.gz"}, "validation_glue": {"file": "glue.jsonl"}}
    (folder / "dataset.json").write_text(json.dumps(about))


def test_a_known_task_has_the_papers_rows_where_they_are_asked_for(sst2):
    phrases = [{"text": f"phrase {row} ", "label": row % 2} for row in range(30)]
    write_glue(
        sst2, [*phrases, {"text": "query  1 ", "label": 1}], [{"text": f"query {r} ", "label": r} for r in (0, 1)]
    )

    assert load_task(sst2).split("train")[0].fields["text"] == "t 0"
    task = load_task(sst2, paper_rows=True)

    # Phrases demonstrate, but for those that are queries, and every text keeps the space at its end.
    queries = [example.fields["text"] for example in task.split("validation")]
    assert (task.report_split, task.paper_split, queries) == ("validation", "validation", ["query 0 ", "query 1 "])
    shown = {example.fields["text"] for name in ("train", "selection") for example in task.split(name)}
    assert shown == {row["text"] for row in phrases}
    assert task.template.render(task.split("validation")[0]) == "Sentence: query 0  Label:"
    notes = " ".join(task.notes)
    assert "phrases.jsonl.gz for train and glue.jsonl for validation" in notes
    assert "Left out of train: 1 of 31 rows" in notes


@pytest.mark.parametrize("lost", ["phrases.jsonl.gz", "glue.jsonl"])
def test_a_folder_without_the_papers_rows_keeps_its_own_and_says_so(sst2, lost):
    write_glue(sst2, [{"text": "p", "label": 0}], [{"text": "q", "label": 0}])
    (sst2 / lost).unlink()

    task = load_task(sst2, paper_rows=True)

    assert task.splits == load_task(sst2).splits
    missing = {"phrases.jsonl.gz": "train_phrases", "glue.jsonl": "validation_glue"}[lost]
    assert [note for note in task.notes if f"add {missing} under `extra_files`" in note]


def test_tasks_whose_rows_the_paper_takes_as_they_are_get_no_note(write_directory, rows):
    folder = write_directory("mr", {"train": rows("t", 20), "validation": rows("v", 4), "test": rows("q", 6)})
    assert load_task(folder, paper_rows=True) == load_task(folder)
    assert load_task(folder).paper_split == "validation"


def test_the_data_folder_may_be_the_tasks_own(sst2):
    assert load_task("sst2", data_dir=sst2).source == str(sst2)


def test_a_folder_is_found_by_its_path(sst2, monkeypatch):
    assert load_task(sst2).source == str(sst2)
    monkeypatch.chdir(sst2.parent)
    assert load_task("sst2").source == "sst2"


def test_the_data_folder_comes_before_the_packaged_sets(write_directory, rows, monkeypatch):
    folder = write_directory("reviews", {"train": rows("t", 20)})
    monkeypatch.setattr(packaged, "read_packaged", lambda name: pytest.fail("asked for the package"))
    assert load_task("reviews", data_dir=folder.parent).source == str(folder)


def test_a_table_becomes_a_task_with_three_splits(tickets):
    task = load_task(tickets, text="body", label="urgent", label_words=["no", "yes"])
    assert task.name == "tickets"
    assert list(task.splits) == ["train", "selection", "report"]
    assert task.label_words == ("no", "yes")
    assert task.template.render(task.split("report")[0]).startswith("Text: ticket ")
    assert draw_demonstrations(task, 8, 1, balanced=True).k_effective == 8


def test_a_yaml_file_says_it_all_and_options_still_come_first(tickets):
    path = tickets.parent / "mine.yml"
    path.write_text(
        'name: support\ndata: tickets.csv\ntext: body\nlabel: urgent\nprompt: "Ticket: {text}\\nUrgent:"\n'
        'label_words: {1: "yes", 0: "no"}\nseparator: "\\n"\n'
    )
    task = load_task(path)
    assert (task.name, task.source) == ("support", f"{path} ({tickets})")
    assert (task.label_words, task.template.separator) == (("no", "yes"), "\n")
    assert task.template.prompt == "Ticket: {text}\nUrgent:"
    assert load_task(path, label_words="calm,urgent", separator="eos").label_words == ("calm", "urgent")


def test_a_yaml_file_may_reword_a_known_task(sst2, tmp_path):
    path = tmp_path / "other.yaml"
    path.write_text("data: sst2\nlabel_words: [terrible, great]\n")
    task = load_task(path, data_dir=sst2.parent)
    assert (task.name, task.label_words) == ("other", ("terrible", "great"))
    assert task.template.prompt == "Sentence: {text} Label:"


def test_no_demonstration_is_ever_a_query(write_directory, rows):
    folder = write_directory("toy", {"train": rows("same", 20), "test": rows("same", 5)})
    task = load_task(folder)
    queries = {example.fields["text"] for example in task.split(task.report_split)}
    shown = draw_demonstrations(task, len(task.demonstration_pool), 1).examples
    assert not queries & {example.fields["text"] for example in shown}
    assert "Left out of train: 5 of 20 rows" in task.notes[0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sst22", "no task 'sst22' .*Did you mean 'sst2'.*Available: .*agnews"),
        ("zzzz", r"packaged sets or the known hub names\. Available: .*reviews"),
        ("./gone", "./gone does not exist"),
        ("gone/", "gone/ does not exist"),
        ("a/b/c", "a/b/c does not exist"),
        ("gone.csv", "gone.csv does not exist"),
        ("gone.yaml", "gone.yaml does not exist"),
    ],
)
def test_what_cannot_be_found_is_named_with_what_can(name, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TaskError, match=message):
        load_task(name)


def test_a_path_into_an_existing_folder_is_no_hub_address(sst2, monkeypatch):
    monkeypatch.chdir(sst2.parent.parent)
    with pytest.raises(TaskError, match="sst3 does not exist"):
        load_task(f"{sst2.parent.name}/sst3")
    (sst2.parent / "bare").mkdir()
    with pytest.raises(TaskError, match=r"bare has no dataset.json"):
        load_task(f"{sst2.parent.name}/bare")


def test_a_name_that_only_the_hub_knows_needs_the_network(monkeypatch, tmp_path):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match=r"stanfordnlp/sst2.*--data-dir"):
        load_task("sst2", data_dir=tmp_path)
    with pytest.raises(HubError, match="someone/things"):
        load_task("someone/things")


def test_a_text_file_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(TaskError, match=r"notes.txt is not a table .*'\.txt'"):
        load_task(tmp_path / "notes.txt")


def test_a_data_folder_that_is_none_is_named_with_where_it_was_said(tmp_path, monkeypatch):
    with pytest.raises(TaskError, match=r"--data-dir is '.*gone'"):
        load_task("sst2", data_dir=tmp_path / "gone")
    monkeypatch.setenv("DUALFORM_DATA", str(tmp_path / "lost"))
    with pytest.raises(TaskError, match=r"\$DUALFORM_DATA is '.*lost'"):
        load_task("sst2")


def test_the_list_says_what_is_where(sst2, write_directory, rows):
    write_directory("own", {"train": rows("t", 4)}, label_names=["x", "y"])
    write_directory("quiz", {"train": []}, label_names=None)
    prose = write_directory("prose", {"train": []})
    (prose / "dataset.json").write_text('{"splits": {"train": {"file": "train.txt"}}}')
    (write_directory("broken", {"train": []}) / "dataset.json").write_text("{")
    listed = {summary.name: summary for summary in available_tasks(sst2.parent)}
    assert listed["sst2"] == TaskSummary("sst2", str(sst2), ("Negative", "Positive"), True)
    assert listed["own"].label_words == ("x", "y")
    assert listed["quiz"].label_words is None
    assert prose.name not in listed
    assert "unusable" in listed["broken"].where
    assert not listed["broken"].local
    assert listed["reviews"].where == "package index: vaderSentiment 2.5"
    assert listed["cb"] == TaskSummary("cb", "hub: aps/super_glue:cb", ("True", "False", "Neither"), False)


def test_every_listed_local_task_loads(sst2):
    for summary in available_tasks(sst2.parent):
        if summary.local:
            assert load_task(summary.name, data_dir=sst2.parent).name == summary.name
