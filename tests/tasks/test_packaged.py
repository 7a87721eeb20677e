import io
import json
import tarfile
from collections import Counter

import pytest

from dualform.errors import HubError
from dualform.tasks import packaged
from dualform.tasks.packaged import INNER_ARCHIVE, PACKAGED_SETS, folder_of, is_local, read_packaged
from dualform.tasks.sources import load_task


def pack(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))
    return buffer.getvalue()


def lines(rows):
    return "".join(f"{identifier}\t{rating}\t{text}\r\n" for identifier, rating, text in rows).encode()


# Thirty clear rows of each set: enough that every split gets some of both labels.
REVIEWS = [(i, 2.0 if i % 2 else -2.0, f"film {i}") for i in range(60)]
SENTENCES = [(f"{i // 4}_{i % 4}", 1.5 if i % 2 else -1.5, f"sentence {i}") for i in range(120)]
TWEETS = [
    *((i, 0.51 if i % 2 else -0.51, f"tweet {i}") for i in range(60)),
    (90, 0.5, "on the edge"),
    (91, -0.5, "on the other edge"),
    (92, 0.0, "neither"),
    (93, 3.0, "you &amp; me &lt;3 at&amp;amp;t &copy that\x85 caf\u00e9\u2028!"),
    (94, 3.0, " tweet 1 "),
    (95, 3.0, "a\ttab"),
]


@pytest.fixture
def served(monkeypatch, tmp_path):
    """An empty cache and a package index that serves a small archive; returns the requests made."""
    monkeypatch.setenv("DUALFORM_CACHE", str(tmp_path / "cache"))
    requests = []
    contents = {"reviews": REVIEWS, "tweets": TWEETS, "products": SENTENCES, "editorials": SENTENCES}

    def fetch(distribution, folder):
        requests.append(distribution)
        inner = pack({f"hutto_ICWSM_2014/{PACKAGED_SETS[n].member}": lines(rows) for n, rows in contents.items()})
        archive = folder / "vaderSentiment-2.5.tar.gz"
        archive.write_bytes(pack({INNER_ARCHIVE: inner, "../escaped.txt": b"never unpacked"}))
        return archive

    monkeypatch.setattr(packaged, "fetch", fetch)
    return requests


def texts(raw):
    return {split: [row["text"] for row in rows] for split, rows in raw.rows.items()}


def test_all_four_sets_come_of_one_request(served, tmp_path):
    assert not is_local("reviews")
    for name in PACKAGED_SETS:
        task = load_task(name)
        assert (task.name, task.report_split, task.selection_split) == (name, "test", "validation")
        assert task.label_words == ("negative", "positive")
        assert task.template.separator == "\n\n"
        assert all(len({e.label for e in split}) == 2 for split in task.splits.values())
        assert is_local(name)
    assert [request.name for request in served] == ["vaderSentiment"]
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["data"]
    assert not list(tmp_path.rglob("escaped.txt"))


def test_ratings_above_zero_are_positive_and_those_within_a_half_are_left_out(served):
    rows = [row for split in read_packaged("tweets").rows.values() for row in split]
    labels = {row["text"]: row["label"] for row in rows}
    assert (labels["tweet 1"], labels["tweet 2"]) == (1, 0)
    assert not {"on the edge", "on the other edge", "neither"} & set(labels)
    assert len(rows) == 62


def test_texts_are_cleaned_of_entities_and_duplicates(served):
    found = [text for split in texts(read_packaged("tweets")).values() for text in split]
    assert "you & me <3 at&t &copy that\x85 caf\u00e9\u2028!" in found
    assert "a\ttab" in found
    assert Counter(found)["tweet 1"] == 1


def test_a_document_is_never_cut_between_splits(served):
    document_of = {text: identifier.split("_")[0] for identifier, _, text in SENTENCES}
    split_of_document: dict[str, str] = {}
    for split, found in texts(read_packaged("products")).items():
        for text in found:
            assert split_of_document.setdefault(document_of[text], split) == split
    assert set(split_of_document.values()) == {"train", "validation", "test"}


def test_the_written_folder_says_what_it_holds(served):
    read_packaged("reviews")
    folder = folder_of("reviews")
    about = json.loads((folder / "dataset.json").read_text())
    for split, entry in about["splits"].items():
        written = [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]
        assert entry["rows"] == len(written)
        assert entry["label_counts"] == [sum(row["label"] == label for row in written) for label in (0, 1)]
        assert entry["bytes"] == (folder / f"{split}.jsonl").stat().st_size
    task = load_task("reviews")
    assert task.demonstration_pool[3].row == 3
    assert task.demonstration_pool[3].fields["text"] == read_packaged("reviews").rows["train"][3]["text"]


def test_a_damaged_cache_is_written_again(served):
    before = texts(read_packaged("reviews"))
    (folder_of("reviews") / "train.jsonl").unlink()
    assert texts(read_packaged("reviews")) == before
    assert len(served) == 2


def test_an_archive_without_the_data_is_refused_and_leaves_nothing(served, monkeypatch, tmp_path):
    def fetch(distribution, folder):
        archive = folder / "empty.tar.gz"
        archive.write_bytes(pack({"README": b""}))
        return archive

    monkeypatch.setattr(packaged, "fetch", fetch)
    with pytest.raises(HubError, match=r"vaderSentiment 2.5 has no file .*hutto_ICWSM_2014.tar.gz"):
        read_packaged("reviews")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.real
def test_the_real_archive_holds_thousands_of_rows_of_both_labels(monkeypatch, tmp_path):
    monkeypatch.setenv("DUALFORM_CACHE", str(tmp_path))
    sizes = {}
    for name in PACKAGED_SETS:
        task = load_task(name)
        sizes[name] = sum(len(split) for split in task.splits.values())
        for split in task.splits.values():
            positive = sum(example.label for example in split) / len(split)
            assert 0.3 < positive < 0.75
            assert len(split) > 400
        assert len(task.demonstration_pool) > 0.5 * sizes[name]
    assert sizes["reviews"] > 10_000
    assert min(sizes.values()) > 2_700
