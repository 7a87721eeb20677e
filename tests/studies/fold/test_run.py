"""A fold on disk is the fold that was measured, and a failed fold leaves nothing on disk."""

import ast
import contextlib
import dataclasses
import html
import io
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tokenizers
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from dualform.errors import ConfigError, ModelError, StorageError, TaskError
from dualform.learners.adapted import AdaptedModel, answer_log_probabilities
from dualform.learners.prompting import ZeroShot
from dualform.models.editing.edit import WeightDelta, applied
from dualform.models.export.checkpoint import write_checkpoint
from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.perplexity import text_losses
from dualform.runs.store import read_result, write_report
from dualform.studies.comparison.seed_record import SeedRecord
from dualform.studies.comparison.summary import summarise
from dualform.studies.experiment import Experiment
from dualform.studies.fold import run as study
from dualform.studies.fold.config import FoldConfig, fold_config
from dualform.studies.fold.run import SavedFold, fold, truncated, verified
from dualform.studies.fold.words import findings
from dualform.studies.folds import make_fold, perplexity_passages
from tests.studies.small import RecordedProgress, small_task
from tests.tiny import save_tiny, tiny_tokenizer

# peft says of each linear without a bias that an adapter with one cannot be merged, which the card says too.
pytestmark = pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed")

PROSE = ["a cold and plain morning, and with wit and grace it went", "one of the worst films of the year", "so it is"]
NAMES = {"config.json", "model.safetensors", "tokenizer.json", "README.md"}


@dataclass(frozen=True)
class Place:
    """A folder with a base model on disk and some prose; checkpoints go to `to`."""

    folder: Path
    family: str

    @property
    def base(self) -> Path:
        return self.folder / self.family

    @property
    def to(self) -> Path:
        return self.folder / "folded"

    @property
    def prose(self) -> str:
        return str(self.folder / "prose.txt")

    def config(self, **changes: Any) -> FoldConfig:
        given: dict[str, Any] = {
            "k": 4,
            "limit": 8,
            "selection_limit": 6,
            "resamples": 50,
            "fold": {"texts": 12, "plain": self.prose},
        }
        return fold_config(str(self.base), "toy", **(given | changes))

    def lm(self) -> LanguageModel:
        return loaded(self.base)

    def others(self) -> set[str]:
        """What lies there beside base and prose."""
        return {path.name for path in self.folder.iterdir()} - {self.family, "prose.txt"}


def loaded(folder: Path) -> LanguageModel:
    """A folder as anybody would load it."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    return LanguageModel.wrap(model, tiny_tokenizer(), str(folder))


@pytest.fixture(params=["llama"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    folders = Place(tmp_path, request.param)
    save_tiny(folders.family, folders.base)
    Path(folders.prose).write_text("\n".join(PROSE) + "\n", encoding="utf-8")
    return folders


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[SeedRecord]:
    """The seed records behind all further results."""
    records: list[SeedRecord] = []

    def summarise_and_keep(config: Any, lm: Any, description: Any, outcomes: Any, seconds: float) -> Any:
        records.extend(outcomes)
        return summarise(config, lm, description, outcomes, seconds)

    monkeypatch.setattr(study, "summarise", summarise_and_keep)
    return records


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The script that reads a fold back is run here: another process takes seconds to import torch."""

    def run(command: list[str], **more: Any) -> subprocess.CompletedProcess[str]:
        script, *arguments = command[2:]
        printed = io.StringIO()
        with monkeypatch.context() as patch, contextlib.redirect_stdout(printed):
            patch.setattr(sys, "argv", ["-c", *arguments])
            try:
                exec(script, {"__name__": "__main__"})
            except Exception as error:
                return subprocess.CompletedProcess(command, 1, "", f"Traceback\n{type(error).__name__}: {error}\n")
        return subprocess.CompletedProcess(command, 0, printed.getvalue(), "")

    monkeypatch.setattr(study, "subprocess", SimpleNamespace(run=run))


def asked_zero_shot(lm: LanguageModel, config: FoldConfig) -> tuple[torch.Tensor, Experiment[FoldConfig]]:
    """A plain model's answers to the queries of a fold."""
    experiment = Experiment.of(config, lm, small_task())
    adapted = ZeroShot(experiment.encoder.opening).adapt(lm, experiment.draw(1).encoded)
    return answer_log_probabilities(adapted, lm, experiment.queries), experiment


def changed_weights(folder: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
    file = folder / "model.safetensors"
    save_file({name: change(name, value) for name, value in load_file(file).items()}, file, metadata={"format": "pt"})


# What is written.


@pytest.mark.parametrize("place", ["llama", "gpt2", "gemma3"], indirect=True)
def test_a_folder_loads_and_answers_zero_shot_as_was_measured(place: Place, measured: list[SeedRecord]) -> None:
    watched = RecordedProgress()
    config = place.config()
    written = fold(config, place.to, lm=place.lm(), task=small_task(), progress=watched)

    assert place.others() == {"folded"}
    assert {path.name for path in place.to.iterdir()} >= NAMES
    answers, experiment = asked_zero_shot(loaded(place.to), config)
    (outcome,) = measured
    # Sums of float32 in another order.
    torch.testing.assert_close(answers, outcome.log_probabilities["fold"], rtol=0, atol=1e-5)
    right = (answers.argmax(1) == experiment.labels).double().mean()
    assert written.result.accuracy["fold"].mean == pytest.approx(float(right))
    same = (answers.argmax(1) == outcome.log_probabilities["icl"].argmax(1)).double().mean()
    assert written.result.against_icl["fold"].agreement.mean == pytest.approx(float(same))
    # The base itself answers otherwise, so that the comparison above says something.
    assert (asked_zero_shot(place.lm(), config)[0] - answers).abs().max() > 1e-3
    assert (written.folder, written.kept, written.perplexity, written.difference) == (place.to, None, None, None)
    assert watched.done == pytest.approx(watched.total)


def test_the_result_holds_zero_shot_prompt_and_fold(place: Place) -> None:
    result = fold(place.config(), place.to, lm=place.lm(), task=small_task()).result

    assert result.study == "comparison"
    assert list(result.accuracy) == list(result.cost) == ["zsl", "icl", "fold"]
    assert result.fold is not None
    assert (result.fold.method, result.fold.texts, result.fold.source) == ("ridge", 12, "train")
    assert (result.fold.plain_source, result.fold.similarity) == ("prose.txt", {})
    tokens = {name: cost.tokens or 0 for name, cost in result.cost.items()}
    assert 0 < tokens["fold"] == tokens["zsl"] < tokens["icl"]
    break_even = result.against_icl["fold"].break_even
    assert break_even is not None
    saved = (result.cost["icl"].flops or 0) - (result.cost["fold"].flops or 0)
    assert break_even == pytest.approx((result.cost["fold"].adapt_flops or 0) / saved)


def test_the_card_tells_what_was_folded_and_how_good_it_is(place: Place) -> None:
    written = fold(place.config(perplexity=place.prose), place.to, lm=place.lm(), task=small_task())
    card = (place.to / "README.md").read_text(encoding="utf-8")

    assert written.perplexity is not None
    accuracy = written.result.accuracy["fold"].mean
    assert accuracy is not None
    for words in ("ridge", "folded, zero-shot", "12 unlabelled texts", "prose.txt", f"{accuracy:.3f}"[:4]):
        assert words in card, words


def program_of(folder: Path, base: Path | None = None) -> dict[str, Any]:
    """The variables of the model card's program after it was run with real paths."""
    (program,) = re.findall(r"^```python\n(.*?)^```", (folder / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    assert "dualform" not in program
    program = program.replace("path/to/this/folder", str(folder)).replace("path/to/the/base/model", str(base))
    names: dict[str, Any] = {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(program, names)
    # The last line is the answer that was measured when the card was written.
    answer, _, scores = program.splitlines()[-1].removeprefix("# Output when the model was made: ").partition(" ")
    answer_now, _, scores_now = printed.getvalue().partition(" ")
    assert answer_now == answer
    for word, score in ast.literal_eval(scores).items():
        assert ast.literal_eval(scores_now)[word] == pytest.approx(score, abs=1e-3)
    return names


@pytest.mark.parametrize("form", ["checkpoint", "lora"])
def test_the_program_of_the_card_reproduces_its_numbers(place: Place, measured: list[SeedRecord], form: str) -> None:
    tokenizer = tiny_tokenizer()
    # Opens with a token that dualform would not choose by itself, closes with another, and is made for chat.
    tokenizer.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="</s> $A <s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    tokenizer.chat_template = "<s>{{ messages[0]['content'] }}</s>"
    tokenizer.save_pretrained(place.base)
    lm = LanguageModel.wrap(AutoModelForCausalLM.from_pretrained(place.base), tokenizer, str(place.base))
    task = small_task()
    result = fold(place.config(form=form, limit=None, rank=32), place.to, lm=lm, task=task).result

    names = program_of(place.to, place.base)
    words = list(task.label_words or ())
    examples = task.split(task.report_split)
    answers = []
    for example in examples:
        scores = names["scores"](**{name: example.fields[name] for name in task.template.fields})
        answers.append(max(scores, key=scores.get))
        expected = measured[0].log_probabilities["fold"][len(answers) - 1].tolist()
        assert [scores[word] for word in words] == pytest.approx(expected, abs=1e-4)
    card = (place.to / "README.md").read_text(encoding="utf-8")
    right = sum(words[example.label] == answer for example, answer in zip(examples, answers, strict=True))
    assert f"| `folded, zero-shot` | {right / len(examples):.3f} |" in card
    prompted = [words[i] for i in measured[0].log_probabilities["icl"].argmax(1).tolist()]
    same = sum(answer == other for answer, other in zip(answers, prompted, strict=True))
    assert f"the same answer to {same / len(examples):.1%} of the queries" in card
    # Cohen's expected agreement, from the answers that were counted here.
    chance = sum(answers.count(word) * prompted.count(word) for word in words) / len(examples) ** 2
    assert f"it would be {chance:.1%}" in card
    against = result.against_icl["fold"]
    assert against.expected == pytest.approx(chance)
    if chance < 1:
        assert against.kappa == pytest.approx((same / len(examples) - chance) / (1 - chance))
    zero_shot = measured[0].log_probabilities["zsl"].argmax(1).tolist()
    same = sum(words[answer] == other for answer, other in zip(zero_shot, prompted, strict=True))
    assert f"The zero-shot base model agrees with the prompted one on {same / len(examples):.1%}" in card
    for part in ("`</s>` (1), which the tokenizer adds by default", repr(task.template.prompt), *words):
        assert part in card, part
    assert "chat template" in card


def test_no_chat_template_is_written(place: Place) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    lm = dataclasses.replace(place.lm(), tokenizer=tokenizer)
    fold(place.config(), place.to, lm=lm, task=small_task())

    assert not any("chat" in path.name for path in place.to.rglob("*"))
    assert AutoTokenizer.from_pretrained(place.to).chat_template is None
    assert lm.tokenizer.chat_template
    assert "chat template was left out" in (place.to / "README.md").read_text(encoding="utf-8")


def test_the_result_lies_beside_the_checkpoint_and_makes_a_page(place: Place) -> None:
    written = fold(place.config(), place.to, lm=place.lm(), task=small_task())

    assert read_result(place.to) == written.result
    page = html.unescape(write_report(place.to).read_text(encoding="utf-8"))
    sentences = findings(written.result)
    assert sentences
    for sentence in sentences:
        assert sentence in page
    # It is still a checkpoint that may be replaced by another.
    fold(place.config(), place.to, overwrite=True, lm=place.lm(), task=small_task())


@pytest.mark.parametrize("method", ["thought-vector", "thought-matrix", "mezo"])
def test_published_methods_are_written_too(place: Place, measured: list[SeedRecord], method: str) -> None:
    config = place.config(fold={"method": method, "texts": 10})
    fold(config, place.to, lm=place.lm(), task=small_task())

    answers, _ = asked_zero_shot(loaded(place.to), config)
    torch.testing.assert_close(answers, measured[0].log_probabilities["fold"], rtol=0, atol=1e-5)


def test_only_the_first_seed_is_folded(place: Place) -> None:
    result = fold(place.config(seeds=(2, 1)), place.to, lm=place.lm(), task=small_task()).result

    assert result.demonstrations is not None
    assert list(result.demonstrations.rows) == ["2"]


# What is not.


@pytest.mark.parametrize("form", ["checkpoint", "lora"])
@pytest.mark.parametrize("at", ["make_fold", "_measured", "model_card"])
@pytest.mark.parametrize("error", [ModelError("in between"), KeyboardInterrupt()])
def test_nothing_is_written_and_all_is_restored_when_something_raises_in_between(
    place: Place, monkeypatch: pytest.MonkeyPatch, at: str, error: BaseException, form: str
) -> None:
    lm = place.lm()
    before = state(lm)
    monkeypatch.setattr(study, at, raising(error))

    with pytest.raises(type(error)):
        fold(place.config(form=form, rank=2), place.to, lm=lm, task=small_task())
    assert place.others() == set()
    assert_same_state(lm, before)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_write_that_breaks_off_leaves_what_was_there(
    place: Place, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    if overwrite:
        save_tiny("llama", place.to, seed=7)
    lm = place.lm()
    before = state(lm)
    monkeypatch.setattr(lm.tokenizer, "save_pretrained", raising(OSError(28, "No space left on device")), raising=False)

    with pytest.raises(StorageError, match=r"cannot write .*folded: the disk is full"):
        fold(place.config(), place.to, overwrite=overwrite, lm=lm, task=small_task())
    assert place.others() == ({"folded"} if overwrite else set())
    if overwrite:
        loaded(place.to)
    assert_same_state(lm, before)


def state(lm: LanguageModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in lm.model.state_dict().items()}


def assert_same_state(lm: LanguageModel, before: dict[str, torch.Tensor]) -> None:
    after = lm.model.state_dict()
    # Names too: a temporary bias must not stay.
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def raising(error: BaseException) -> Callable[..., Any]:
    def stop(*arguments: object, **more: object) -> Any:
        raise error

    return stop


def test_the_model_in_memory_stays_as_it_was(place: Place) -> None:
    lm = place.lm()
    before = state(lm)
    fold(place.config(perplexity=place.prose), place.to, lm=lm, task=small_task())
    fold(place.config(form="lora", rank=2), place.folder / "adapter", lm=lm, task=small_task())

    assert_same_state(lm, before)


def test_a_folder_in_the_way_is_refused_before_any_work(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny("llama", place.to, seed=7)
    old = (place.to / "model.safetensors").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Experiment, "of", raising(AssertionError("this is work")))
        run = partial(fold, place.config(), lm=place.lm(), task=small_task())
        with pytest.raises(ConfigError, match=r"folded already exists. Choose another folder"):
            run(place.to)
        with pytest.raises(ConfigError, match="the base model's own folder"):
            run(place.base, overwrite=True)
        with pytest.raises(ConfigError, match=r"is not a folder with a config\.json"):
            run(Path(place.prose), overwrite=True)
    assert (place.to / "model.safetensors").read_bytes() == old

    fold(place.config(), place.to, overwrite=True, lm=place.lm(), task=small_task())
    assert (place.to / "model.safetensors").read_bytes() != old
    assert place.others() == {"folded"}


@pytest.mark.parametrize("method", ["rank-one", "task-vector", "kv-momentum"])
def test_what_changes_no_weights_is_refused_before_any_work(
    place: Place, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(Experiment, "of", raising(AssertionError("this is work")))
    with pytest.raises(ConfigError, match=f"method {method} changes no weights, so there is nothing to write"):
        fold(place.config(fold={"method": method}), place.to, lm=place.lm(), task=small_task())


def test_settings_are_checked_together() -> None:
    with pytest.raises(ConfigError) as error:
        fold_config("m", "t", rank=0, form="gguf", fold={"texts": 1})
    for words in ("rank: ", "'gguf'", "'checkpoint' or 'lora'", "fold.texts: ", "(given 1)"):
        assert words in str(error.value)
    with pytest.raises(ConfigError, match="k 0 leaves nothing to fold: give at least one demonstration"):
        fold_config("m", "t", k=0)
    assert fold_config("m", "t", limit=0, seeds=None).limit is None
    assert fold_config("m", "t").seeds == (1,)


# Reading back.


def test_what_is_loaded_in_a_fresh_process_gives_the_same_log_probabilities(place: Place) -> None:
    written = fold(place.config(verify=True), place.to, lm=place.lm(), task=small_task())

    assert written.difference is not None
    assert written.difference < 1e-5


@pytest.fixture
def folded(place: Place) -> tuple[Experiment[FoldConfig], AdaptedModel]:
    """A fold that lies at `place.to` and is in memory."""
    experiment = Experiment.of(place.config(), place.lm(), small_task())
    adapted = make_fold(experiment, experiment.draw(1), experiment.config.fold).adapted
    assert isinstance(adapted, AdaptedModel)
    write_checkpoint(experiment.lm, adapted.deltas, place.to, "a card")
    return experiment, adapted


@pytest.mark.usefixtures("in_this_process")
def test_weights_that_differ_from_those_in_memory_are_an_error(
    place: Place, folded: tuple[Experiment[FoldConfig], AdaptedModel]
) -> None:
    experiment, adapted = folded
    check = partial(verified, experiment.lm, adapted, experiment, place.to, experiment.config)
    assert check() < 1e-5

    def moved(name: str, value: torch.Tensor) -> torch.Tensor:
        return value * 1.01 if name.endswith("o_proj.weight") else value

    changed_weights(place.to, moved)
    with pytest.raises(ModelError, match=r"log-probabilities differ from those in memory by .* nats, so it was"):
        check()


@pytest.mark.usefixtures("in_this_process")
def test_weights_that_give_no_numbers_are_an_error(
    place: Place, folded: tuple[Experiment[FoldConfig], AdaptedModel]
) -> None:
    experiment, adapted = folded

    def lost(name: str, value: torch.Tensor) -> torch.Tensor:
        return value * torch.nan if name.endswith("norm.weight") else value

    changed_weights(place.to, lost)
    with pytest.raises(ModelError, match="differ from those in memory by nan nats"):
        verified(experiment.lm, adapted, experiment, place.to, experiment.config)


@pytest.mark.usefixtures("in_this_process")
def test_a_folder_that_does_not_load_is_told(place: Place, folded: tuple[Experiment[FoldConfig], AdaptedModel]) -> None:
    experiment, adapted = folded
    weights = place.to / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])

    with pytest.raises(ModelError, match="the written model does not load in a fresh process, so it was removed: "):
        verified(experiment.lm, adapted, experiment, place.to, experiment.config)


# The adapter.


@pytest.fixture(params=["llama", "gpt2"])
def experiment_and_fold(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Experiment[FoldConfig], AdaptedModel]:
    place = Place(tmp_path, request.param)
    save_tiny(place.family, place.base)
    Path(place.prose).write_text("\n".join(PROSE) + "\n", encoding="utf-8")
    experiment = Experiment.of(place.config(), place.lm(), small_task())
    adapted = make_fold(experiment, experiment.draw(1), experiment.config.fold).adapted
    assert isinstance(adapted, AdaptedModel)
    return experiment, adapted


def weights_of(deltas: tuple[WeightDelta, ...]) -> list[WeightDelta]:
    return [change for change in deltas if change.delta.dim() == 2]


def test_an_adapter_of_full_rank_loses_nothing(
    experiment_and_fold: tuple[Experiment[FoldConfig], AdaptedModel],
) -> None:
    experiment, adapted = experiment_and_fold
    whole, kept = truncated(experiment.lm, experiment.encoder.opening, adapted, 10_000)

    assert kept == pytest.approx(1, abs=1e-5)
    for before, after in zip(adapted.deltas, whole.deltas, strict=True):
        assert before.parameter == after.parameter
        torch.testing.assert_close(after.delta, before.delta, rtol=0, atol=1e-5)
    answers = [answer_log_probabilities(model, experiment.lm, experiment.queries) for model in (adapted, whole)]
    torch.testing.assert_close(answers[1], answers[0], rtol=0, atol=1e-4)


def test_an_adapter_of_rank_one_keeps_the_largest_direction(
    experiment_and_fold: tuple[Experiment[FoldConfig], AdaptedModel],
) -> None:
    experiment, adapted = experiment_and_fold
    cut, kept = truncated(experiment.lm, experiment.encoder.opening, adapted, 1)

    values = [torch.linalg.svdvals(change.delta.double()) for change in weights_of(adapted.deltas)]
    total = sum(float(value.square().sum()) for value in values)
    assert kept == pytest.approx(sum(float(value[0] ** 2) for value in values) / total, abs=1e-5)
    assert 0 < kept < 0.95
    assert all(int(torch.linalg.matrix_rank(change.delta, rtol=1e-4)) == 1 for change in weights_of(cut.deltas))
    biases = [change for change in adapted.deltas if change.delta.dim() == 1]
    assert biases == [change for change in cut.deltas if change.delta.dim() == 1]
    _, more = truncated(experiment.lm, experiment.encoder.opening, adapted, 2)
    assert more > kept
    # The opening is read with the cut weights too.
    with applied(experiment.lm.model, cut.deltas):
        expected = experiment.lm.encode(experiment.encoder.opening)
    for (k, v), (k_expected, v_expected) in zip(cut.prefix.layers, expected.layers, strict=True):
        assert torch.equal(k, k_expected)
        assert torch.equal(v, v_expected)


def test_no_change_is_kept_whole(experiment_and_fold: tuple[Experiment[FoldConfig], AdaptedModel]) -> None:
    experiment, adapted = experiment_and_fold
    zeros = tuple(
        WeightDelta(change.parameter, change.axis, change.index, torch.zeros_like(change.delta))
        for change in adapted.deltas
    )
    _, kept = truncated(
        experiment.lm,
        experiment.encoder.opening,
        AdaptedModel("fold", experiment.lm, adapted.prefix, adapted.cost, zeros),
        1,
    )

    assert kept == 1


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("place", ["llama", "gpt2"], indirect=True)
def test_the_adapter_that_is_written_is_the_one_that_was_measured(place: Place, measured: list[SeedRecord]) -> None:
    config = place.config(form="lora", rank=2, verify=True)
    written = fold(config, place.to, lm=place.lm(), task=small_task())

    assert {path.name for path in place.to.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
        "result.json",
    }
    assert written.kept is not None
    assert 0 < written.kept < 1
    card = (place.to / "README.md").read_text(encoding="utf-8").replace("\\", "")
    assert f"rank 2 and keeps {written.kept:.1%}" in card
    assert written.difference is not None
    assert written.difference < 1e-5
    # By hand, where every answer is one token.
    lm = place.lm()
    experiment = Experiment.of(config, lm, small_task())
    model = PeftModel.from_pretrained(lm.model, place.to).eval()
    for number, query in enumerate(experiment.queries):
        assert all(len(answer) == 1 for answer in query.answers)
        ids = torch.tensor([[*experiment.encoder.opening, *query.prompt]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, -1].double().log_softmax(-1)
        expected = measured[0].log_probabilities["fold"][number]
        torch.testing.assert_close(logits[[answer[0] for answer in query.answers]], expected, rtol=0, atol=1e-5)


# Perplexity.


@pytest.mark.parametrize("form", ["checkpoint", "lora"])
def test_perplexity_is_that_of_base_and_written_model(place: Place, form: str) -> None:
    config = place.config(perplexity=place.prose, perplexity_texts=2, form=form, rank=1)
    written: SavedFold = fold(config, place.to, lm=place.lm(), task=small_task())

    lm = place.lm()
    experiment = Experiment.of(config, lm, small_task())
    passages = perplexity_passages(experiment, place.prose, 2)
    assert [lm.tokenizer.decode(list(passage)) for passage in passages] == PROSE[:2]
    by_hand = []
    after: Any = loaded(place.to) if form == "checkpoint" else None
    for who in (lm, after):
        if who is None:
            PeftModel.from_pretrained(lm.model, place.to)  # puts the adapter into the very modules of the base
            who = lm
        losses = text_losses(who, experiment.encoder.opening, passages)
        by_hand.append(float((losses[:, 0].sum() / losses[:, 1].sum()).exp()))
    assert written.perplexity == pytest.approx(tuple(by_hand), rel=1e-5)
    assert by_hand[0] != by_hand[1]


def test_a_file_without_a_passage_is_refused_before_any_work(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(place.prose).write_text("a\nb\n", encoding="utf-8")
    monkeypatch.setattr(study, "make_fold", raising(AssertionError("this is work")))
    with pytest.raises(TaskError, match=r"prose.txt holds no passage of two tokens or more"):
        fold(place.config(perplexity=place.prose), place.to, lm=place.lm(), task=small_task())
