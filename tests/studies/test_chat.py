"""Every study that reads a task can read it as chats."""

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dualform.errors import ConfigError
from dualform.learners.base import LEARNERS
from dualform.models.reading.language_model import LanguageModel
from dualform.runs.sweep_cells import DigestCache, cells_of
from dualform.runs.sweep_config import read_sweep_file
from dualform.studies.comparison.config import ComparisonConfig, comparison_config
from dualform.studies.comparison.run import compare
from dualform.studies.controls import CONTROLS
from dualform.studies.experiment import Experiment
from dualform.studies.fold.config import FoldConfig, fold_config
from dualform.studies.folding.config import folding_config
from dualform.studies.folding.run import folding
from dualform.studies.selection.config import selection_config
from dualform.studies.selection.run import selection
from dualform.studies.stability.config import stability_config
from dualform.studies.stability.run import stability
from tests.chats import CHAT_FAMILIES
from tests.studies.small import small_config, small_task, write_csv
from tests.tiny import save_tiny, tiny_model

SYSTEM = "Answer with one word."
SMALL: dict[str, Any] = {"k": 4, "limit": 6, "selection_limit": 4, "resamples": 20, "rates": (1e-2,)}


@cache
def chat_lm(name: str = "chatml") -> LanguageModel:
    model = tiny_model("llama", dtype=torch.float64)
    return LanguageModel.wrap(model, CHAT_FAMILIES[name].tokenizer(), f"tiny {name}")


def config_of(**changes: Any) -> ComparisonConfig:
    return small_config(**({"chat": "on", "seeds": (1,)} | changes))


class TestComparison:
    def test_the_result_says_in_which_form_prompts_were_and_why(self) -> None:
        result = compare(config_of(system=SYSTEM), lm=chat_lm(), task=small_task()).result
        assert (result.task["form"], result.task["form_reason"]) == ("chat", "--chat is on")
        assert result.config["system"] == SYSTEM
        assert result.task["separator"] == "<|im_end|>\n<|im_start|>user\n"
        assert result.task["opening"][0] == "<|im_start|>"
        assert result.task["prompt"].endswith("<|im_end|>\n<|im_start|>assistant\n")
        assert any("turns of a chat" in warning and SYSTEM in warning for warning in result.warnings)

        plain = compare(config_of(chat="off"), lm=chat_lm(), task=small_task()).result
        assert (plain.task["form"], plain.task["form_reason"]) == ("plain", "--chat is off")
        assert plain.accuracy["zsl"].n == result.accuracy["zsl"].n
        config = config_of(chat="auto", learners=("zsl", "icl"), controls=())
        automatic = compare(config, lm=chat_lm(), task=small_task()).result
        assert automatic.task["form"] == "plain"
        assert "neither the generation config" in automatic.task["form_reason"]

    def test_finetuning_at_rate_zero_is_zero_shot(self) -> None:
        config = config_of(rates=(0.0,), controls=())
        (record,) = compare(config, lm=chat_lm(), task=small_task()).records
        answers = record.log_probabilities
        assert torch.equal(answers["ft"], answers["zsl"])
        assert not torch.equal(answers["icl"], answers["zsl"])

    @pytest.mark.filterwarnings("ignore")
    def test_every_learner_and_control_runs_and_leaves_no_trace(self) -> None:
        lm = chat_lm("mistral")
        before = {key: weight.clone() for key, weight in lm.model.state_dict().items()}
        config = config_of(
            learners=LEARNERS.names(),
            controls=CONTROLS.names(),
            lora_rates=(1e-2,),
            fold={"texts": 8, "plain_texts": 2, "plain_length": 12},
            explore=2,
        )
        result = compare(config, lm=lm, task=small_task()).result
        assert set(result.accuracy) == set(LEARNERS.names())
        assert set(result.controls) >= {"random", "position_shift", "other_task", "icl_order"}
        after = lm.model.state_dict()
        assert all(torch.equal(weight, after[key]) for key, weight in before.items())

    def test_label_words_of_several_tokens_and_texts_too_long(self) -> None:
        config = config_of(truncate=True, context=160, k=2, controls=())
        task = small_task()
        longer = {
            name: tuple(
                dataclasses.replace(example, fields={"text": example.fields["text"] + " and so on" * 20})
                for example in examples
            )
            for name, examples in task.splits.items()
        }
        task = dataclasses.replace(task, splits=longer, label_words=("lukewarm at best", "fine"))
        experiment = Experiment.of(config, chat_lm(), task)
        drawn = experiment.draw(1)
        assert len(drawn.encoded.sequences) == 2
        longest = max(len(query.prompt) + max(map(len, query.answers)) for query in experiment.queries)
        assert len(drawn.encoded.prefix) + longest <= 160


@pytest.mark.filterwarnings("ignore")
def test_the_other_studies_read_chats_too() -> None:
    lm, task = chat_lm(), small_task()
    sets = {"orders": 2, "ft_seeds": 1, "label_seeds": 1}
    stable = stability(
        stability_config(("tiny",), "toy", chat="on", seeds=(1, 2), **sets, **SMALL), lms=[lm], task=task
    )
    selected = selection(selection_config("tiny", "toy", chat="on", seeds=(1, 2), **SMALL), lm=lm, task=task)
    texts = {"fold": {"texts": 8, "plain": "none"}, "axes": ("k",), "ks": (2,)}
    folded = folding(folding_config("tiny", "toy", chat="on", seeds=(1,), **texts, **SMALL), lm=lm, task=task)
    for study in (stable, selected, folded):
        assert study.result.task["form"] == "chat"
        assert any("turns of a chat" in warning for warning in study.result.warnings)


class TestSettings:
    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"system": SYSTEM}, "chat is off: set chat to on or auto, or leave system out"),
            ({"chat": "on", "system": "  "}, "system is empty"),
            ({"chat": "on", "separator": "\n"}, "separator '\\n' cannot be set with chat on"),
            ({"chat": "auto", "opening": "bos"}, "opening 'bos' cannot be set with chat auto"),
            ({"chat": "yes"}, "chat"),
        ],
    )
    def test_settings_that_contradict_each_other_are_refused(self, settings: dict[str, Any], words: str) -> None:
        for configure in (comparison_config, selection_config, folding_config, fold_config):
            with pytest.raises(ConfigError) as raised:
                configure("m", "t", **settings)
            assert words in str(raised.value)
        with pytest.raises(ConfigError):
            stability_config(("m",), "t", **settings)

    def test_yaml_s_truth_values_are_read_as_words(self, tmp_path: Path) -> None:
        file = tmp_path / "config.yaml"
        file.write_text("model: m\ntask: t\nchat: on\nsystem: 'First.\\nSecond.'\n")
        config = ComparisonConfig.read(file)
        assert (config.chat, config.system) == ("on", "First.\nSecond.")
        file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
        assert ComparisonConfig.read(file) == config
        file.write_text("model: m\ntask: t\nchat: off\n")
        assert ComparisonConfig.read(file).chat == "off"
        assert FoldConfig.from_settings(model="m", task="t").chat == "off"

    def test_a_model_without_template_is_refused_before_its_weights_are_read(self, tmp_path: Path) -> None:
        base = save_tiny("llama", tmp_path / "base")
        (base / "model.safetensors").unlink()
        with pytest.raises(ConfigError, match=r"the tokenizer of .*base has no chat template"):
            comparison_config(str(base), "t", chat="on").load_model(str(base))

    def test_both_forms_are_an_axis_of_a_sweep(self, tmp_path: Path) -> None:
        base = save_tiny("llama", tmp_path / "base")
        table = write_csv(tmp_path / "task.csv")
        (tmp_path / "forms.yaml").write_text(
            f"models: [{base}]\ntasks: [{{task: {table}, text: body, label: topic}}]\nseeds: 1..2\n"
            "grid: {chat: [off, on]}\n"
        )
        _, groups = read_sweep_file(tmp_path / "forms.yaml")
        assert [group.config.chat for group in groups if isinstance(group.config, ComparisonConfig)] == ["off", "on"]
        assert [group.name for group in groups] == ["base-task-chat-off", "base-task-chat-on"]
        assert [group.options for group in groups] == [{"chat": "off"}, {"chat": "on"}]
        digests = DigestCache()
        keys = [{cell.key.digest for cell in cells_of(group, digests)} for group in groups]
        assert len(keys[0]) == len(keys[1]) == 2
        assert not keys[0] & keys[1]
