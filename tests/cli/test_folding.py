"""`dualform folding`: the study from the command line."""

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dualform.studies.folding import run as study
from dualform.studies.folding.config import FoldingConfig
from dualform.studies.folds import make_fold
from tests.cli.conftest import Done, numbers, result_of

pytestmark = pytest.mark.usefixtures("quick_page")
Command = Callable[..., Done]
PROMISED = {"config.yaml", "result.json", "examples.parquet", "report.html", "log.txt"}
PROSE = "a cold and plain morning, and with wit and grace it went\none of the worst films of the year\n"


@pytest.fixture(scope="module")
def prose(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("texts") / "prose.txt"
    path.write_text(PROSE, encoding="utf-8")
    return str(path)


@pytest.fixture
def quick(prose: str) -> list[str]:
    """A study of a second: two axes, two methods."""
    small = ["--text", "body", "--label", "topic", "-k", "4", "--limit", "8", "--selection-limit", "6"]
    small += ["--resamples", "50", "--seeds", "1,2", "--rates", "1e-2", "--fold-texts", "12", "--plain", prose]
    return [*small, "--axes", "method,k", "--methods", "ridge,thought-vector", "--ks", "2"]


@pytest.mark.usefixtures("real_page")
def test_a_study_prints_its_words_and_tables_and_leaves_a_whole_folder(
    dualform: Command, quick: list[str], prose: str, out: Path
) -> None:
    done = dualform("folding", "llama", "tickets.csv", *quick, "--perplexity", prose, "--out", out)

    assert done.code == 0, done.err
    assert {path.name for path in out.iterdir()} == PROMISED
    assert done.err.split() == ["Report:", *str(out / "report.html").split()]
    for words in ("ridge", "thought", "zero-shot"):
        assert words in done.out.lower(), words
    result = result_of(out)
    assert result["study"] == "folding"
    assert [(point["axis"], point["value"]) for point in result["folding"]["points"]] == [
        ("method", "ridge"),
        ("method", "thought-vector"),
        ("k", "2"),
        ("k", "4"),
    ]
    assert result["folding"]["perplexity"]["source"] == "prose.txt"
    log = (out / "log.txt").read_text(encoding="utf-8")
    for words in ("llama on tickets.csv", "seed 2, ft: finished", "seed 1, fold ridge of 2 "):
        assert words in log
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "dualform: folding" in page
    learners = set(pq.read_table(out / "examples.parquet")["learner"].to_pylist())
    assert {"zsl", "icl k=4", "icl k=2", "ft"} < learners


def test_the_same_command_again_reads_what_is_there(
    dualform: Command, quick: list[str], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folds: list[tuple[int, str]] = []

    def counted(experiment: object, drawn: object, settings: object, *rest: object) -> object:
        if len(folds) == stop_before:
            raise KeyboardInterrupt
        folds.append((drawn.demonstrations.seed, settings.method))  # type: ignore[attr-defined]
        return make_fold(experiment, drawn, settings, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(study, "make_fold", counted)
    arguments = ["folding", "llama", "tickets.csv", *quick, "--no-ft"]
    stop_before = 4
    done = dualform(*arguments, "--out", out)
    assert done.code == 130
    assert "Finished folds are kept; run the same command to resume." in done.message
    assert not (out / "result.json").exists()
    assert len(folds) == 4

    stop_before = -1
    done = dualform(*arguments, "--out", out)
    assert done.code == 0, done.err
    # Three ways (the default lies on both axes) of two seeds, each once.
    assert len(folds) == 6
    assert "seed 1, ft" not in (out / "log.txt").read_text(encoding="utf-8")
    whole = out.with_name("whole")
    assert dualform(*arguments, "--out", whole).code == 0
    assert numbers(result_of(out)) == numbers(result_of(whole))
    first, second = (pq.read_table(folder / "examples.parquet") for folder in (out, whole))
    assert first.equals(second)


def test_options_reach_the_settings(dualform: Command, quick: list[str], prose: str, out: Path, tmp_path: Path) -> None:
    options = ["--axes", "texts,strength,layers", "--text-counts", "8", "--strengths", "0.1,gcv", "--seeds", "4"]
    options += ["--layer-sets", "all,last half", "--strength", "gcv", "--answer-weight", "5", "--no-ft", "--shuffled"]
    options += ["--context", "300", "--dtype", "float64", "--device", "cpu", "--route", "packed"]
    done = dualform("folding", "llama", "tickets.csv", *quick, *options, "--json", "--out", out)

    assert done.code == 0, done.err
    assert done.out == (out / "result.json").read_text(encoding="utf-8")
    config = FoldingConfig.read(out / "config.yaml")
    assert (config.axes, config.text_counts, config.strengths) == (("texts", "strength", "layers"), (8,), (0.1, "gcv"))
    assert (config.layer_sets, config.seeds, config.ft, config.balanced) == (("all", "last half"), (4,), False, False)
    assert (config.fold.answer_weight, config.fold.texts, config.fold.plain) == (5, 12, prose)
    assert (config.context, config.dtype, config.route) == (300, "float64", "packed")
    values = [(point["axis"], point["value"]) for point in result_of(out)["folding"]["points"]]
    assert values == [
        ("texts", "8"),
        ("texts", "12"),
        ("strength", "0.1"),
        ("strength", "gcv"),
        ("layers", "all"),
        ("layers", "last half"),
    ]


def test_the_folder_is_named_after_model_task_and_study(
    dualform: Command, quick: list[str], tmp_path: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [*quick, "--axes", "k", "--no-ft", "--seeds", "1"]
    done = dualform("folding", workplace / "llama", workplace / "tickets.csv", *arguments)

    assert done.code == 0, done.err
    assert (tmp_path / "runs" / "llama-tickets-folding" / "result.json").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--axes", "nonsense"], ["--axes, value 1: ", "'nonsense'", "'method'"]),
        (["--axes", "k,k"], ["axes ['k', 'k'] must be different"]),
        (["--methods", "magic"], ["'magic'", "'ridge'"]),
        (["--ks", "x"], ["'x'", "should look like"]),
        (["--ks", "0,4"], ["k 0 leaves nothing to fold"]),
        (["--text-counts", "2,64"], ["text_counts [2] are too few to fold from: give at least 8"]),
        (["--strengths", "0.1,strong"], ["strengths 'strong' should be a number such as 0.01, or gcv"]),
        (["--strengths", "-1"], ["strengths [-1.0] must be 0 or more and finite, or gcv"]),
        (["--layer-sets", "odd"], ["'odd'", "'first half'"]),
        (["--fold-texts", "2"], ["--fold-texts: ", "(given 2)"]),
        (["--transfer", "tickets.csv"], ["task tickets.csv is the study's own"]),
        (["--compose", "nowhere.csv"], ["nowhere.csv"]),
        (["--perplexity", "nowhere.txt"], ["nowhere.txt does not exist. Check the path"]),
        (["--calibration", "nowhere.txt"], ["nowhere.txt does not exist. Check the path"]),
        (["--seed", "1"], ["--seed 1 and --seeds 1,2 were both given"]),
    ],
)
def test_mistakes_are_named(
    dualform: Command, quick: list[str], out: Path, arguments: list[str], words: list[str]
) -> None:
    done = dualform("folding", "llama", "tickets.csv", *quick, *arguments, "--out", out)

    assert done.code == 2, done.err
    assert done.out == ""
    assert done.err.startswith("error: ")
    for word in words:
        assert word in done.message, done.message
    assert not (out / "result.json").exists()


def test_help_has_worked_examples(dualform: Command) -> None:
    done = dualform("folding", "--help")

    assert done.code == 0
    assert "dualform folding smollm2-135m reviews --axes method" in done.out
    for name in ("--axes", "--methods", "--transfer", "--compose", "--perplexity"):
        assert name in done.out
