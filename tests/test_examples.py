"""The packages under `examples/`, installed beside dualform and used by its commands as a user would."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.neighbors import NearestCentroid
from typer.testing import CliRunner

from dualform.cli.main import app
from dualform.models.load import load_model
from dualform.report.measures import control_of
from dualform.report.palette import learner_style
from dualform.studies.bench import Bench
from dualform.studies.comparison.config import read_config
from tests.fixed_machine import fixed_machine
from tests.packages import install
from tests.studies.small import write_csv
from tests.tiny import save_tiny

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
TABLE = "--text body --label topic -k 6 --limit 8 --selection-limit 6 --resamples 50 --seeds 1 --rates 1e-2"
MOST_LINES = 40


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a model, a table and, on the search path, all the examples."""
    save_tiny("llama", tmp_path / "llama")
    write_csv(tmp_path / "tickets.csv")
    modules = {path.stem for path in EXAMPLES.glob("*/*.py")}
    for folder in EXAMPLES.iterdir():
        monkeypatch.syspath_prepend(install(folder, tmp_path / "packages" / folder.name))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dualform.models.machine.this_machine", lambda *given, **more: fixed_machine())
    yield tmp_path
    for name in modules:
        sys.modules.pop(name, None)


def dualform(words: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, words.split())
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*/*.py")), ids=lambda path: path.stem)
def test_an_example_is_short(path: Path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert sum(bool(line.strip()) and not line.strip().startswith(("#", '"""')) for line in lines) <= MOST_LINES


@pytest.mark.parametrize("kind", sorted(folder.name for folder in EXAMPLES.iterdir()))
def test_the_page_that_tells_how_shows_the_example_itself(kind: str):
    page = (ROOT / "docs" / f"adding_{kind}.md").read_text(encoding="utf-8")
    for path in (EXAMPLES / kind).glob("*.*"):
        assert path.read_text(encoding="utf-8").strip() in page, path


def test_a_learner_of_another_package_is_compared_charted_and_planned(workplace: Path):
    words = f"compare llama tickets.csv {TABLE} --learners zsl,icl,centroid"
    code, _, err = dualform(f"{words} --out run")
    assert code == 0, err
    result = json.loads(Path("run/result.json").read_text(encoding="utf-8"))

    # Its answers, by scikit-learn from hidden states of plain forwards.
    config = read_config(Path("run/config.yaml"))
    lm = load_model("llama")
    bench = Bench.of(config, lm, config.load_task())
    drawn = bench.draw(1).demonstrations

    def states(examples):
        found = []
        for example in examples:
            ids = torch.tensor([(*bench.encoder.opening, *bench.encoder.query(example).prompt)])
            with torch.no_grad():
                found.append(lm.model.model(input_ids=ids).last_hidden_state[0, -1].double().numpy())
        return np.stack(found)

    expected = NearestCentroid().fit(states(drawn.examples), drawn.labels).predict(states(bench.examples))
    rows = pq.read_table("run/examples.parquet").to_pylist()
    assert [row["prediction"] for row in rows if row["learner"] == "centroid"] == expected.tolist()
    right = float(np.mean(expected == bench.labels.numpy()))
    assert result["accuracy"]["centroid"]["mean"] == pytest.approx(right)

    assert list(result["accuracy"]) == ["zsl", "icl", "centroid"]
    assert result["cost"]["centroid"]["adapt_tokens"] == sum(
        len(bench.encoder.query(example).prompt) for example in drawn.examples
    )
    assert "centroid" in result["against_icl"]
    page = Path("run/report.html").read_text(encoding="utf-8")
    assert learner_style("centroid").title == "nearest centroid"
    assert page.count("nearest centroid") > 3

    code, out, err = dualform(f"plan {words} --json")
    assert code == 0, err
    parts = {part["name"]: part for part in json.loads(out)["parts"]}
    assert parts["centroid"]["tokens_forwards"] == result["cost"]["centroid"]["adapt_tokens"]


def test_a_misspelt_learner_gets_one_message_with_all_names(workplace: Path):
    code, out, err = dualform(f"compare llama tickets.csv {TABLE} --learners zsl,icl,centroids")
    assert (code, out) == (2, "")
    message = " ".join(err.split())
    assert "unknown learner 'centroids': choose among zsl, icl, ft, lora, probe, fold, centroid" in message


def test_a_learner_that_needs_demonstrations_or_classes_is_left_out_or_refused_for_that(workplace: Path):
    code, _, err = dualform(f"compare llama tickets.csv {TABLE} -k 0 --learners zsl,icl,centroid")
    assert code == 2
    assert "k 0 leaves centroid nothing to learn from" in " ".join(err.split())


def test_a_control_of_another_package_is_read_calibrated_charted_and_planned(workplace: Path):
    words = f"compare llama tickets.csv {TABLE} --learners zsl,icl,ft --controls flipped_labels,icl_order,ft_order"
    code, _, err = dualform(f"{words} --out run")
    assert code == 0, err
    result = json.loads(Path("run/result.json").read_text(encoding="utf-8"))

    # Its accuracy, from a prompt put together by hand and plain forwards.
    config = read_config(Path("run/config.yaml"))
    lm = load_model("llama")
    bench = Bench.of(config, lm, config.load_task())
    drawn = bench.draw(1).demonstrations
    prefix = list(bench.encoder.opening)
    for example in drawn.examples:
        query = bench.encoder.query(example)
        prefix += [*query.prompt, *query.answers[1 - example.label], *bench.encoder.separator]

    def score(prompt, answer):
        ids = torch.tensor([[*prefix, *prompt, *answer]])
        with torch.no_grad():
            table = lm.model(input_ids=ids).logits[0].double().log_softmax(-1)
        first = len(prefix) + len(prompt) - 1
        return float(table[torch.arange(first, ids.shape[1] - 1), torch.tensor(answer)].mean())

    chosen = [int(np.argmax([score(query.prompt, answer) for answer in query.answers])) for query in bench.queries]
    right = float(np.mean(np.array(chosen) == bench.labels.numpy()))
    control = result["controls"]["flipped_labels"]
    assert control["accuracy"]["mean"] == pytest.approx(right)

    assert {"sim_aou", "sim_am", "direct_update", "kendall"} <= set(control)
    assert result["calibrated"]["sim_aou"]["control"] == "flipped_labels"
    assert control_of("flipped_labels").kind == "floor"
    assert "flipped labels" in Path("run/report.html").read_text(encoding="utf-8")

    code, out, err = dualform(f"plan {words} --json")
    assert code == 0, err
    parts = {part["name"]: part for part in json.loads(out)["parts"]}
    queries = sum(query.width() for query in bench.queries)
    assert parts["control flipped_labels"]["tokens_forwards"] == len(prefix) + queries


def test_a_misspelt_control_gets_one_message_with_all_names(workplace: Path):
    code, out, err = dualform(f"compare llama tickets.csv {TABLE} --learners zsl,icl,ft --controls flipped")
    assert (code, out) == (2, "")
    message = " ".join(err.split())
    assert "unknown control 'flipped': choose among random, random_update" in message
    assert "rates, flipped_labels" in message
