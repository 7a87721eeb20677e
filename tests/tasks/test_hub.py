import datasets
import huggingface_hub
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from dualform.errors import HubError, TaskError
from dualform.tasks.build import build_task
from dualform.tasks.hub import HUB_PLACES, read_hub
from dualform.tasks.options import NO_OPTIONS, TaskOptions
from dualform.tasks.prompts import WORDINGS


@pytest.fixture
def hub(monkeypatch):
    """Let the hub serve the given splits; returns the calls made."""

    def serve(**splits):
        calls = []

        def load_dataset(path, config, revision):
            calls.append((path, config, revision))
            return splits

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return calls

    return serve


def dataset(rows, names=None, label="label"):
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    features = None
    if names is not None:
        texts = {name: Value("string") for name in columns if name != label}
        features = Features({**texts, label: ClassLabel(names=names)})
    return Dataset.from_dict(columns, features=features)


def sentences(prefix, n, label=None, **more):
    return [{"sentence": f"{prefix} {i}", "label": i % 2 if label is None else label, **more} for i in range(n)]


def test_a_known_task_is_read_from_its_place_without_the_hidden_labels(hub):
    names = ["negative", "positive"]
    calls = hub(
        train=dataset(sentences("t", 20), names),
        validation=dataset(sentences("v", 4), names),
        test=dataset(sentences("q", 4, label=-1)),
    )
    raw = read_hub("sst2")
    task = build_task(raw, NO_OPTIONS)
    assert calls == [("stanfordnlp/sst2", None, None)]
    assert task.source == "hub: stanfordnlp/sst2"
    assert (task.report_split, task.selection_split, task.paper_split) == ("validation", "selection", "validation")
    assert task.template.render(task.split("validation")[0]) == "Sentence: v 0 Label:"
    assert task.label_words == ("Negative", "Positive")


def test_labels_numbered_otherwise_are_renumbered_by_name(hub):
    rows = [{"text": f"t {i}", "label": i % 2, "label_text": ["subjective", "objective"][i % 2]} for i in range(20)]
    hub(train=dataset(rows))
    raw = read_hub("subj")
    assert raw.label_names == WORDINGS["subj"].label_names == ("objective", "subjective")
    assert [row["label"] for row in raw.rows["train"][:2]] == [1, 0]


def test_labels_under_other_names_keep_their_order(hub):
    hub(train=dataset([{"text": f"t {i}", "label": i % 2} for i in range(20)], ["neg", "pos"]))
    raw = read_hub("mr")
    assert raw.label_names == ("negative", "positive")
    assert [row["label"] for row in raw.rows["train"][:2]] == [0, 1]


def test_another_number_of_labels_drops_the_known_words(hub):
    hub(train=dataset([{"text": f"t {i}", "label": i % 3} for i in range(20)], ["a", "b", "c"]))
    assert read_hub("mr").wording is None
    assert build_task(read_hub("mr"), NO_OPTIONS).label_words == ("a", "b", "c")


def test_multiple_choice_is_put_together_from_columns(hub):
    rows = [{"goal": f"g {i}", "sol1": "a", "sol2": "b", "label": i % 2} for i in range(20)]
    calls = hub(train=dataset(rows, ["0", "1"]))
    task = build_task(read_hub("piqa"), NO_OPTIONS)
    assert calls == [("ybisk/piqa", None, "refs/convert/parquet")]
    assert task.is_multiple_choice
    assert task.answers(task.demonstration_pool[0]) == (" a", " b")
    assert task.template.render(task.demonstration_pool[0]).startswith("Question: g ")


def test_any_address_with_a_configuration_is_read(hub):
    calls = hub(everything=dataset([{"body": f"t {i}", "kind": "xyz"[i % 3]} for i in range(30)]))
    task = build_task(read_hub("someone/things:small", "kind"), TaskOptions(text="body", label="kind"))
    assert calls == [("someone/things", "small", None)]
    assert (task.name, task.source, task.label_words) == ("things", "hub: someone/things:small", ("x", "y", "z"))


def test_another_label_column_drops_the_known_words_here_too(hub):
    hub(train=dataset(sentences("t", 20, tone="x")))
    assert read_hub("sst2", "tone").wording is None


def test_what_has_no_labels_is_refused(hub):
    hub(test=dataset(sentences("q", 3, label=-1)))
    with pytest.raises(TaskError, match=r"no split of stanfordnlp/sst2 has labels\. Its splits are: test"):
        read_hub("sst2")
    hub(train=dataset(sentences("q", 3)))
    with pytest.raises(TaskError, match=r"no column 'tone'\. Its columns are: sentence, label"):
        read_hub("sst2", "tone")


def test_no_network_is_explained_with_the_remedy(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match=r"'stanfordnlp/sst2' from the hub \(the hub does not answer, .*--data-dir"):
        read_hub("sst2")


def test_the_setting_that_was_found_is_left_behind(hub, monkeypatch):
    def unreachable(*_, **__):
        raise OSError("no route")

    def load_dataset(*_, **__):
        seen.append(datasets.config.HF_HUB_OFFLINE)
        raise ConnectionError("offline")

    seen: list[bool] = []
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(HubError, match="does not answer"):
        read_hub("sst2")
    assert seen == [True]
    assert datasets.config.HF_HUB_OFFLINE is False


def test_a_refusal_is_passed_on(monkeypatch):
    def refuse(*_, **__):
        raise ValueError("no such name\nand more")

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", refuse)
    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(HubError, match=r"'a/b' from the hub \(no such name\)"):
        read_hub("a/b")


def test_addresses_are_shown_with_their_configuration():
    assert HUB_PLACES["cb"].address == "aps/super_glue:cb"
