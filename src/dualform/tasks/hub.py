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
    """Address and columns of a task on the hub."""

    path: str
    """`owner/name`."""
    config: str | None = None
    revision: str | None = None
    columns: TaskOptions = NO_OPTIONS

    @property
    def address(self) -> str:
        """`owner/name:config`."""
        return self.path + (f":{self.config}" if self.config else "")


HUB_PLACES: Mapping[str, HubPlace] = {
    "sst2": HubPlace("stanfordnlp/sst2", columns=TaskOptions(text="sentence")),
    "sst5": HubPlace("SetFit/sst5"),
    "mr": HubPlace("cornell-movie-review-data/rotten_tomatoes"),
    "subj": HubPlace("SetFit/subj"),
    "agnews": HubPlace("fancyzhx/ag_news"),
    "cb": HubPlace("aps/super_glue", config="cb"),
    # Its main branch is a loading script, which datasets 4 and later do not run.
    "piqa": HubPlace(
        "ybisk/piqa", revision="refs/convert/parquet", columns=TaskOptions(text="goal", choices="sol1,sol2")
    ),
    "imdb": HubPlace("stanfordnlp/imdb"),
}
"""Address of each known task on the hub."""


def read_hub(name: str, label: str | None = None) -> RawTask:
    """Rows of a known task, or of any data set `owner/name[:config]`.

    Splits without labels (all -1, as in hidden test sets) are left out. Label names come from the data set's features,
    or from a second column such as `label_text`.

    Args:
        name: A key of `HUB_PLACES`, or `owner/name[:config]`.
        label: Label column; None means the usual one.

    Raises:
        HubError: The hub did not answer and nothing is cached, or it has no such data set.
        TaskError: No split has labels, or there is no such label column.
    """
    place = HUB_PLACES.get(name)
    if place is None:
        path, _, config = name.partition(":")
        place = HubPlace(path, config or None)
    wording = WORDINGS.get(name)
    usual_label = place.columns.label or "label"
    if label not in (None, usual_label):
        wording = None  # the known label words do not apply to another column
    label = label or usual_label
    datasets = _load(place)
    rows: dict[str, list[Row]] = {}
    names: tuple[str, ...] | None = None
    unused = []
    for split, dataset in datasets.items():
        standard = SPLIT_NAMES.get(str(split).lower()) or ("train" if len(datasets) == 1 else None)
        if standard is None or standard in rows:
            unused.append(str(split))
            continue
        columns = list(dataset.column_names)
        if label not in columns:
            raise TaskError(
                f"{place.address} has no column {label!r}. Its columns are: {', '.join(columns)}. Name one with "
                "--label."
            )
        labels = list(dataset[label])
        if all(value is None or value == -1 for value in labels):
            unused.append(f"{split} (without labels)")
            continue
        rows[standard] = list(dataset)
        names = names or _label_names(dataset, label, rows[standard])
    if not rows:
        raise TaskError(f"no split of {place.address} has labels. Its splits are: {', '.join(map(str, datasets))}.")
    if wording is not None and wording.label_names is not None and names is not None:
        # The known words have a fixed order; a data set with the same names in another order is renumbered.
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
        source=f"hub: {place.address}",
        rows=rows,
        files={split: f"{place.address}, split {split}" for split in rows},
        columns=TaskOptions(label=label).with_defaults(place.columns),
        label_names=names,
        wording=wording,
        notes=(f"Unused splits of {place.address}: {', '.join(unused)}.",) if unused else (),
    )


def _label_names(dataset: Any, label: str, rows: list[Row]) -> tuple[str, ...] | None:
    names = getattr(dataset.features[label], "names", None)
    if names:
        return tuple(names)
    name_column = f"{label}_text"
    if name_column not in dataset.column_names:
        return None
    pairs = {row[label]: str(row[name_column]) for row in rows if row[label] not in (None, -1)}
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
            splits: Mapping[str, Any] = datasets.load_dataset(place.path, place.config, revision=place.revision)
    # The remedy is the same for every cause: network, names, formats, incomplete caches.
    except Exception as error:
        reason = first_line(error)
        if not answers:
            reason = "the hub does not answer, and nothing is cached"
        raise HubError(
            f"cannot load data set {place.address!r} from the hub ({reason}). Check the name and the network, or save "
            "the data to disk and name its folder with --data-dir."
        ) from error
    return splits


@contextmanager
def _quick_when_offline(path: str) -> Iterator[bool]:
    """Context that yields whether the hub answers; if not, `datasets` uses its cache at once, without retries."""
    import datasets
    import huggingface_hub

    configured = datasets.config.HF_HUB_OFFLINE
    answers = not configured
    try:
        if not configured:
            huggingface_hub.HfApi().dataset_info(path, timeout=SECONDS_TO_ANSWER)
    except (huggingface_hub.errors.HfHubHTTPError, ValueError):
        pass  # load_dataset gives a better message for a refusal or an invalid name
    except Exception:
        answers, datasets.config.HF_HUB_OFFLINE = False, True
    try:
        yield answers
    finally:
        datasets.config.HF_HUB_OFFLINE = configured


class HubTasks(TaskSource):
    """Data sets on the hub: known tasks by name, and any other as `owner/name[:config]`."""

    name = "hub"

    def find(self, given: str) -> str | None:
        """The name itself if it is a known task or has the form of a hub address."""
        return given if given in HUB_PLACES or "/" in given else None

    def read(self, which: str, options: TaskOptions) -> RawTask:
        """Rows of a data set."""
        raw = read_hub(which, options.label)
        if not options.paper_rows or raw.wording is None or not raw.wording.paper_files:
            return raw
        # The released code loads the hub's copies.
        note = f"The rows are those of {raw.source}, which the code released with arXiv:2212.10559 also reads."
        return replace(raw, notes=(*raw.notes, note))

    def is_local(self, which: str) -> bool:
        """False: the hub needs a network."""
        return False

    def tasks(self) -> list[TaskSummary]:
        """The known tasks."""
        return [
            TaskSummary(name, f"hub: {place.address}", WORDINGS[name].label_words, local=False)
            for name, place in HUB_PLACES.items()
        ]


HUB = HubTasks()
