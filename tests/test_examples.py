"""The packages under `examples/`, installed beside dualform and used by its commands as a user would."""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy.spatial.distance import cosine
from sklearn.neighbors import NearestCentroid
from typer.testing import CliRunner

from dualform.cli.main import app
from dualform.learners.finetuned import Finetuned
from dualform.models.editing.edit import applied
from dualform.registry import added_modules
from dualform.report.measures import control_of, measure_of
from dualform.report.palette import learner_style
from dualform.studies.comparison.config import ComparisonConfig, read_config
from dualform.studies.experiment import Experiment
from dualform.tasks.sources import load_task
from tests.fixed_machine import fixed_machine
from tests.packages import install
from tests.studies.small import write_csv
from tests.tiny import save_tiny

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
SMALL = "compare llama tickets.csv --text body --label topic -k 6 --limit 8 --selection-limit 6 --resamples 50"
WORDS = (
    f"{SMALL} --seeds 1 --rates 1e-2 --dtype float64 --learners zsl,icl,ft,centroid "
    "--controls random,flipped_labels,icl_order,ft_order"
)
MOST_LINES = 40


@pytest.fixture(scope="module", autouse=True)
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a model, a table and, on the search path, all the examples."""
    folder = tmp_path_factory.mktemp("examples")
    save_tiny("llama", folder / "llama")
    write_csv(folder / "tickets.csv")
    with pytest.MonkeyPatch.context() as patch:
        for example in EXAMPLES.iterdir():
            patch.syspath_prepend(install(example, folder / "packages" / example.name))
        patch.chdir(folder)
        patch.setattr("dualform.models.cost.machine.this_machine", lambda *given, **more: fixed_machine())
        yield folder
    for path in EXAMPLES.glob("*/*.py"):
        sys.modules.pop(path.stem, None)


def dualform(words: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, words.split())
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, " ".join(done.stderr.split())


@dataclass(frozen=True)
class Run:
    """One comparison with all the examples, its plan, and what it was made from."""

    result: dict[str, Any]
    page: str
    rows: list[dict[str, Any]]
    parts: dict[str, dict[str, Any]]
    """Of the plan, by name."""
    experiment: Experiment[ComparisonConfig]

    @property
    def opening(self) -> tuple[int, ...]:
        return self.experiment.encoder.opening

    def states(self, prefix: Any, examples: Any) -> Any:
        """Last hidden states of plain forwards, `(example, d_model)`."""
        found = []
        for example in examples:
            ids = torch.tensor([[*prefix, *self.experiment.encoder.query(example).prompt]])
            with torch.no_grad():
                found.append(self.experiment.lm.model.model(input_ids=ids).last_hidden_state[0, -1].numpy())
        return np.stack(found)


@pytest.fixture(scope="module")
def run(workplace: Path) -> Run:
    code, _, err = dualform(f"{WORDS} --out run")
    assert code == 0, err
    code, out, err = dualform(f"plan {WORDS} --json")
    assert code == 0, err
    folder, config = workplace / "run", read_config(workplace / "run" / "config.yaml")
    return Run(
        json.loads((folder / "result.json").read_text(encoding="utf-8")),
        (folder / "report.html").read_text(encoding="utf-8"),
        pq.read_table(folder / "examples.parquet").to_pylist(),
        {part["name"]: part for part in json.loads(out)["parts"]},
        Experiment.of(config, config.load_model("llama"), config.load_task()),
    )


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*/*.py")), ids=lambda path: path.stem)
def test_an_example_is_short(path: Path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert sum(bool(line.strip()) and not line.strip().startswith(("#", '"""')) for line in lines) <= MOST_LINES


@pytest.mark.parametrize("kind", sorted(folder.name for folder in EXAMPLES.iterdir()))
def test_the_page_that_tells_how_shows_the_example_itself(kind: str):
    page = (ROOT / "docs" / f"adding_{kind}.md").read_text(encoding="utf-8")
    for path in (EXAMPLES / kind).glob("*.*"):
        assert path.read_text(encoding="utf-8").strip() in page, path


def test_a_learner_of_another_package_answers_as_scikit_learns_does(run: Run):
    drawn = run.experiment.draw(1).demonstrations
    classifier = NearestCentroid().fit(run.states(run.opening, drawn.examples), drawn.labels)
    expected = classifier.predict(run.states(run.opening, run.experiment.examples))

    assert [row["prediction"] for row in run.rows if row["learner"] == "centroid"] == expected.tolist()
    right = float(np.mean(expected == run.experiment.labels.numpy()))
    assert run.result["accuracy"]["centroid"]["mean"] == pytest.approx(right)


def test_a_learner_of_another_package_is_charted_planned_and_has_its_cost(run: Run):
    assert list(run.result["accuracy"]) == ["zsl", "icl", "ft", "centroid"]
    assert "centroid" in run.result["against_icl"]
    assert learner_style("centroid").title == "nearest centroid"
    assert run.page.count("nearest centroid") > 3
    demonstrations = run.experiment.draw(1).demonstrations.examples
    tokens = sum(len(run.experiment.encoder.query(example).prompt) for example in demonstrations)
    assert run.result["cost"]["centroid"]["adapt_tokens"] == tokens
    assert run.parts["centroid"]["tokens_forwards"] == tokens


def test_a_misspelt_learner_gets_one_message_with_all_names():
    code, out, err = dualform(f"{SMALL} --learners zsl,icl,centroids")
    assert (code, out) == (2, "")
    assert "unknown learner 'centroids': choose among zsl, icl, ft, lora, " in err
    assert ", centroid (a package adds one" in err


def test_a_learner_that_needs_demonstrations_is_refused_without():
    code, _, err = dualform(f"{SMALL} -k 0 --learners zsl,icl,centroid")
    assert code == 2
    assert "k 0 leaves centroid nothing to learn from" in err


def test_a_control_of_another_package_reads_as_a_prompt_put_together_by_hand(run: Run):
    experiment, prefix = run.experiment, list(run.opening)
    for example in experiment.draw(1).demonstrations.examples:
        query = experiment.encoder.query(example)
        prefix += [*query.prompt, *query.answers[1 - example.label], *experiment.encoder.separator]

    def score(prompt: Any, answer: Any) -> float:
        ids = torch.tensor([[*prefix, *prompt, *answer]])
        with torch.no_grad():
            table = experiment.lm.model(input_ids=ids).logits[0].log_softmax(-1)
        first = len(prefix) + len(prompt) - 1
        return float(table[torch.arange(first, ids.shape[1] - 1), torch.tensor(answer)].mean())

    chosen = [int(np.argmax([score(query.prompt, answer) for answer in query.answers])) for query in experiment.queries]
    right = float(np.mean(np.array(chosen) == experiment.labels.numpy()))
    control = run.result["controls"]["flipped_labels"]
    assert control["accuracy"]["mean"] == pytest.approx(right)
    assert {"sim_aou", "sim_am", "direct_update", "kendall"} <= set(control)
    queries = sum(query.width() for query in experiment.queries)
    assert run.parts["control flipped_labels"]["tokens_forwards"] == len(prefix) + queries


def test_a_floor_of_another_package_is_on_the_scale_and_on_the_page(run: Run):
    assert control_of("flipped_labels").kind == "floor"
    scale = run.result["calibrated"]["sim_am"]
    assert "flipped_labels" in {scale["control"], *scale["by_control"]}
    assert "flipped labels" in run.page


def test_a_misspelt_control_gets_one_message_with_all_names():
    code, out, err = dualform(f"{SMALL} --learners zsl,icl,ft --controls flipped")
    assert (code, out) == (2, "")
    assert "unknown control 'flipped': choose among random, random_update" in err
    assert "rates, flipped_labels" in err


def test_a_measure_of_another_package_is_that_of_plain_forwards(run: Run):
    experiment = run.experiment
    drawn = experiment.draw(1)
    zsl, icl = (run.states(prefix, experiment.examples) for prefix in (run.opening, drawn.encoded.prefix))
    tuned = Finetuned(run.opening, 1e-2).adapt(experiment.lm, drawn.encoded)
    with applied(experiment.lm.model, tuned.deltas):
        ft = run.states(run.opening, experiment.examples)
    expected = [1 - cosine(a, b) for a, b in zip(icl - zsl, ft - zsl, strict=True)]
    assert run.result["similarity"]["sim_hidden"]["mean"] == pytest.approx(np.mean(expected), abs=1e-6)


def test_a_measure_of_another_package_is_in_every_control_that_has_what_it_needs(run: Run):
    controls = run.result["controls"]
    assert all("sim_hidden" in controls[name] for name in ("flipped_labels", "icl_order", "ft_order"))
    # A made-up side has no hidden states.
    assert "sim_hidden" not in controls["random"]
    assert run.result["calibrated"]["sim_hidden"]["control"] == "flipped_labels"
    assert measure_of("sim_hidden").title == "SimHidden"
    assert "SimHidden" in run.page


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        ('{"other": torch.zeros(8)}', "the measure sim_hidden returned 'other'"),
        ("{self.name: torch.zeros(3)}", r"the measure sim_hidden returned sim_hidden of shape \(3,\) for 8 queries"),
    ],
)
def test_a_measure_that_returns_something_else_is_named(
    returned: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source, module = EXAMPLES / "measure", "dualform_hidden"
    text = (source / f"{module}.py").read_text(encoding="utf-8")
    (tmp_path / "pyproject.toml").write_bytes((source / "pyproject.toml").read_bytes())
    wrong = "import torch\n" + re.sub(r"return \{.*", f"return {returned}", text)
    (tmp_path / f"{module}.py").write_text(wrong, encoding="utf-8")
    # In the place of the one that is installed.
    rest = [path for path in sys.path if not path.endswith("packages/measure")]
    monkeypatch.setattr(sys, "path", [str(install(tmp_path, tmp_path / "target")), *rest])
    monkeypatch.delitem(sys.modules, module, raising=False)

    code, _, err = dualform(f"{SMALL} --seeds 1 --rates 1e-2 --learners zsl,icl,ft --controls none")

    assert code == 2
    assert re.search(words, err)
    sys.modules.pop(module)


def test_a_task_of_another_packages_source_is_listed_loaded_and_split():
    code, out, _ = dualform("tasks --json")
    assert code == 0
    assert {
        "name": "larger",
        "where": "package dualform-larger",
        "label_words": ["first", "second"],
        "local": True,
    } in json.loads(out)
    task = load_task("larger:5")
    names = task.label_names or ()
    examples = [example for part in task.splits.values() for example in part]
    rows = {example.fields["text"]: names[example.label] for example in examples}
    assert rows == {f"{a} or {b}": ("second", "first")[a > b] for a in range(5) for b in range(5) if a != b}
    assert len(load_task("larger").splits["train"]) > len(task.splits["train"])


def test_a_task_of_another_packages_source_is_compared_and_swept(workplace: Path):
    small = "-k 2 --limit 4 --seeds 1 --learners zsl,icl --controls none --resamples 50"
    code, out, err = dualform(f"compare llama larger:6 {small} --json --out numbers")
    assert code == 0, err
    assert json.loads(out)["task"]["name"] == "larger-6"
    grid = "models: [llama]\ntasks: [larger:5, larger:6]\nseeds: [1]\nsettings: {k: 2, limit: 4}\n"
    (workplace / "grid.yaml").write_text(grid, encoding="utf-8")
    code, out, err = dualform("plan sweep grid.yaml --json")
    assert code == 0, err


def test_a_task_that_the_source_does_not_have_gets_its_message():
    code, out, err = dualform("compare llama larger:many -k 2")
    assert (code, out) == (2, "")
    assert "larger:many should be larger:NUMBER" in err


def test_a_misspelt_source_is_reported_with_what_there_is():
    code, _, err = dualform("compare llama lager -k 2")
    assert code == 2
    assert "Did you mean 'larger'?" in err


def test_finished_cells_are_known_by_the_source_of_the_tasks_package():
    assert "dualform_larger" in {module for module, _ in added_modules()}
