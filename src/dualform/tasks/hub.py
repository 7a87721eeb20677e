"""Tasks from the Hugging Face hub, through the `datasets` package."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from dualform.errors import HubError, TaskError, first_line
from dualform.tasks.directory import SPLIT_NAMES
from dualform.tasks.options import NO_OPTIONS, TaskOptions
from dualform.tasks.prompts import WORDINGS
from dualform.tasks.raw import RawTask, Row
from dualform.tasks.task_source import TaskSource, TaskSummary

SECONDS_TO_ANSWER = 10.0


@dataclass(frozen=True)
class HubPlace:
    """Where a task lives on the hub, and in which columns."""

    path: str
    """`owner/name`."""
    config: str | None = None
    revision: str | None = None
    columns: TaskOptions = NO_OPTIONS

    @property
    def shown(self) -> str:
        """`owner/name:config`."""
        return self.path + (f":{self.config}" if self.config else "")


HUB_PLACES: Mapping[str, HubPlace] = {
    "sst2": HubPlace("stanfordnlp/sst2", columns=TaskOptions(text="sentence")),
    "sst5": HubPlace("SetFit/sst5"),
    "mr": HubPlace("cornell-movie-review-data/rotten_tomatoes"),
    "subj": HubPlace("SetFit/subj"),
    "agnews": HubPlace("fancyzhx/ag_news"),
    "cb": HubPlace("aps/super_glue", config="cb"),
    # Its main branch is a loading script, which datasets 4 and later refuse to run.
    "piqa": HubPlace(
        "ybisk/piqa", revision="refs/convert/parquet", columns=TaskOptions(text="goal", choices="sol1,sol2")
    ),
    "imdb": HubPlace("stanfordnlp/imdb"),
}
"""The usual home of each known task."""


def read_hub(name: str, label: str | None = None) -> RawTask:
    """Rows of a known task, or of any data set `owner/name[:config]`.

    Splits without labels (all -1, as hidden test sets have) are left out. Names of the labels come from the data
    set's own features, or from a column beside the label (`label_text`).

    Args:
        name: A key of `HUB_PLACES`, or `owner/name[:config]`.
        label: Label column; None is the place's own.

    Returns:
        The rows.

    Raises:
        HubError: The hub did not answer and nothing is cached, or it has no such data set.
        TaskError: No split has labels.
    """
    place = HUB_PLACES.get(name)
    if place is None:
        path, _, config = name.partition(":")
        place = HubPlace(path, config or None)
    wording = WORDINGS.get(name)
    usual_label = place.columns.label or "label"
    if label not in (None, usual_label):
        wording = None  # another column's labels: the known words do not stand for them
    label = label or usual_label
    found = _load(place)
    rows: dict[str, list[Row]] = {}
    names: tuple[str, ...] | None = None
    unused = []
    for split, dataset in found.items():
        standard = SPLIT_NAMES.get(str(split).lower()) or ("train" if len(found) == 1 else None)
        if standard is None or standard in rows:
            unused.append(str(split))
            continue
        columns = list(dataset.column_names)
        if label not in columns:
            raise TaskError(
                f"{place.shown} has no column {label!r}; its columns: {', '.join(columns)}. Name one with --label."
            )
        labels = list(dataset[label])
        if all(value is None or value == -1 for value in labels):
            unused.append(f"{split} (without labels)")
            continue
        rows[standard] = list(dataset)
        names = names or _label_names(dataset, label, rows[standard])
    if not rows:
        raise TaskError(f"no split of {place.shown} has labels; its splits: {', '.join(map(str, found))}.")
    if wording is not None and wording.label_names is not None and names is not None:
        # The known words stand in our order; only a data set that says otherwise is renumbered, by name.
        if set(names) == set(wording.label_names):
            rows = {split: _renumbered(these, label, names, wording.label_names) for split, these in rows.items()}
        elif len(names) != len(wording.label_names):
            wording = None
    if wording is not None and wording.label_names is not None:
        names = wording.label_names
    if wording is not None and wording.label_names is None:
        names = None
    return RawTask(
        name=name if name in HUB_PLACES else place.path.rpartition("/")[2],
        source=f"hub: {place.shown}",
        rows=rows,
        files={split: f"{place.shown}, split {split}" for split in rows},
        columns=TaskOptions(label=label).over(place.columns),
        label_names=names,
        wording=wording,
        notes=(f"Left out of {place.shown}: splits {', '.join(unused)}.",) if unused else (),
    )


def _label_names(dataset: Any, label: str, rows: list[Row]) -> tuple[str, ...] | None:
    names = getattr(dataset.features[label], "names", None)
    if names:
        return tuple(names)
    beside = f"{label}_text"
    if beside not in dataset.column_names:
        return None
    pairs = {row[label]: str(row[beside]) for row in rows if row[label] not in (None, -1)}
    return tuple(pairs[index] for index in range(len(pairs))) if set(pairs) == set(range(len(pairs))) else None


def _renumbered(rows: list[Row], label: str, names: tuple[str, ...], wanted: tuple[str, ...]) -> list[Row]:
    if names == wanted:
        return rows

    def renumbered(value: Any) -> Any:
        known = isinstance(value, int) and 0 <= value < len(names)
        return wanted.index(names[value]) if known else value

    return [{**row, label: renumbered(row[label])} for row in rows]


def _load(place: HubPlace) -> Mapping[str, Any]:
    import datasets

    try:
        with _quick_when_offline(place.path) as answers:
            found: Mapping[str, Any] = datasets.load_dataset(place.path, place.config, revision=place.revision)
    # Whatever goes wrong in there (network, names, formats, half-filled caches), the remedy is the same.
    except Exception as error:
        reason = first_line(error)
        if not answers:
            reason = "it does not answer, and nothing is cached"
        raise HubError(
            f"the hub gave no data set {place.shown!r} ({reason}). Check the name and the network, or put the data on "
            "disk and name its folder with --data-dir."
        ) from error
    return found


@contextmanager
def _quick_when_offline(path: str) -> Iterator[bool]:
    """Without a network go straight to the cache, not through half a minute of retries; gives whether there is one."""
    import datasets
    import huggingface_hub

    configured = datasets.config.HF_HUB_OFFLINE
    answers = not configured
    try:
        if not configured:
            huggingface_hub.HfApi().dataset_info(path, timeout=SECONDS_TO_ANSWER)
    except (huggingface_hub.errors.HfHubHTTPError, ValueError):
        pass  # a refusal, or an impossible name: load_dataset explains it better
    except Exception:
        answers, datasets.config.HF_HUB_OFFLINE = False, True
    try:
        yield answers
    finally:
        datasets.config.HF_HUB_OFFLINE = configured


class HubTasks(TaskSource):
    """Data sets on the hub: the papers' tasks by their usual names, and any by `owner/name[:config]`."""

    name = "hub"

    def find(self, given: str) -> str | None:
        """The name itself."""
        return given if given in HUB_PLACES or "/" in given else None

    def read(self, which: str, options: TaskOptions) -> RawTask:
        """Rows of a data set."""
        raw = read_hub(which, options.label)
        if not options.paper_rows or raw.wording is None or not raw.wording.paper_files:
            return raw
        # The hub's copies are those that the released code loads.
        note = f"The rows are those of {raw.source}, which the code released with arXiv:2212.10559 reads too."
        return replace(raw, notes=(*raw.notes, note))

    def is_local(self, which: str) -> bool:
        """Never."""
        return False

    def tasks(self) -> list[TaskSummary]:
        """Those with a name of their own."""
        return [
            TaskSummary(name, f"hub: {place.shown}", WORDINGS[name].label_words, local=False)
            for name, place in HUB_PLACES.items()
        ]


HUB = HubTasks()
