from pathlib import Path
from typing import Any

import pytest
import yaml

from dualform.errors import ConfigError
from dualform.studies.comparison.config import (
    CHEAP_CONTROLS,
    PRESETS,
    ComparisonConfig,
    Preset,
    comparison_config,
    read_config,
)
from dualform.studies.controls import CONTROLS
from tests.studies.known_controls import CEILINGS, FLOORS


def test_settings_that_were_not_given_keep_their_defaults() -> None:
    config = comparison_config("m", "t", k=None, rates=None, dtype=None)

    assert (config.k, config.seeds, config.limit, config.dtype) == (32, (1, 2, 3), 200, "float32")
    assert config.learners == ("zsl", "icl", "ft", "lora", "probe", "fold")


def test_what_is_given_comes_before_the_preset() -> None:
    config = comparison_config("m", "t", preset="dai2023", rates=(1e-3,), seeds=(4, 2))

    assert config.rates == (1e-3,)
    assert config.seeds == (4, 2)
    assert (config.preset, config.select_on, config.probe) == ("dai2023", "report", "label0")


def test_the_preset_holds_the_papers_protocol() -> None:
    config = comparison_config("m", "t", preset="dai2023")

    assert not config.balanced
    assert config.reads_paper_rows
    assert not comparison_config("m", "t").reads_paper_rows
    assert config.seeds == (1, 2, 3, 4, 5, 6, 7)
    assert config.select == "icl"
    assert config.limit == 2000
    assert config.learners == ("zsl", "icl", "ft")
    assert len(config.rates) == 36
    assert {1.6e-4, 0.2} <= {float(f"{rate:.2g}") for rate in config.rates}
    assert (config.tune, config.loss_on, config.k) == ("each", "all", 32)
    # A search that stopped early would not be the paper's.
    assert config.patience >= len(config.rates)


def test_an_unknown_preset_is_named_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="unknown preset 'nonsense': choose one of default, dai2023"):
        comparison_config("m", "t", preset="nonsense")  # type: ignore[arg-type]


def test_all_problems_are_reported_in_one_message() -> None:
    with pytest.raises(ConfigError) as caught:
        comparison_config("m", "t", k=-2, dtype="int8", limit=-1, probes="prompt")

    message = str(caught.value)
    assert "k: " in message
    assert "-2" in message
    assert "dtype: " in message
    assert "'int8'" in message
    assert "'float32'" in message
    assert "limit: " in message
    assert "probes: " in message


def test_all_incompatible_settings_are_reported_in_one_message() -> None:
    with pytest.raises(ConfigError) as caught:
        comparison_config("m", "t", seeds=(1, 1), rates=(float("inf"),), lora_rates=(), k=0)

    message = str(caught.value)
    assert "seeds [1, 1]" in message
    assert "rates [inf]" in message
    assert "lora_rates []" in message
    assert "leave them out with --learners zsl,icl,ft" in message


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"seeds": ()}, r"seeds \[\] must be one or more different numbers"),
        ({"seeds": (-1,)}, r"seeds \[-1\]"),
        ({"learners": ()}, r"learners \[\]"),
        ({"learners": ("zsl", "zsl")}, r"learners \['zsl', 'zsl'\]"),
        ({"learners": ("zsl", "mezo")}, "'mezo'"),
        ({"rates": (float("nan"),)}, r"rates \[nan\]"),
        ({"seeds": (2**32,)}, r"seeds \[4294967296\] must be one or more different numbers from 0 to 4294967295"),
        ({"rates": (-1e-3,)}, r"rates \[-0.001\]"),
        ({"rates": (1e38,)}, r"rates \[1e\+38\] must be one or more numbers between 0 and 1e\+37"),
        ({"lora_rates": (1e38,)}, r"lora_rates \[1e\+38\] must be one or more numbers between 0 and 1e\+37"),
        ({"learners": ("zsl", "ft"), "select": "icl"}, "select icl chooses by accuracy, so learners must include icl"),
        ({"learners": ("zsl", "icl"), "select": "ft"}, "select ft chooses by accuracy, so learners must include ft"),
        ({"learners": ("zsl", "icl"), "select": "both"}, "select both chooses by accuracy, .* must include ft"),
        ({"learners": ("zsl",), "select": "both"}, "must include icl and ft"),
        ({"select": "best"}, "'best'"),
        ({"controls": ("random", "bogus")}, "'bogus'"),
        ({"controls": ("all", "random")}, "'all'"),
        ({"controls": ("random", "random")}, r"controls \['random', 'random'\] must be different"),
        ({"control_limit": -1}, "control_limit: .*-1"),
        ({"context": 7}, "7"),
        ({"resamples": 9}, "9"),
        ({"patience": 0}, "0"),
        ({"route": "fastest"}, "'fastest'"),
        ({"label_rule": "wrong"}, "'wrong'"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        comparison_config("m", "t", **settings)


def test_the_largest_seed_and_rate_are_allowed() -> None:
    config = comparison_config("m", "t", seeds=(0, 2**32 - 1), rates=(0.0, 1e37))

    assert (config.seeds, config.rates) == ((0, 4294967295), (0.0, 1e37))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_limit_of_0_means_all(preset: Preset) -> None:
    config = comparison_config("m", "t", preset=preset, limit=0, selection_limit=0, control_limit=0)

    assert (config.limit, config.selection_limit, config.control_limit) == (None, None, None)


def test_controls_can_be_named_all_at_once_or_left_out() -> None:
    everything = comparison_config("m", "t", controls=("all",)).controls

    assert comparison_config("m", "t").controls == CHEAP_CONTROLS
    assert set(CHEAP_CONTROLS) < set(everything) == set(CONTROLS.own)
    assert comparison_config("m", "t", controls=("none",)).controls == ()
    assert comparison_config("m", "t", controls=()).controls == ()
    assert comparison_config("m", "t", controls=("mlp", "random")).controls == ("mlp", "random")


def test_every_comparison_has_a_floor_and_both_ceilings_by_default() -> None:
    # Without them nothing can be calibrated.
    assert set(CEILINGS) <= set(CHEAP_CONTROLS)
    assert set(FLOORS) & set(CHEAP_CONTROLS)
    assert set(FLOORS) - {"chance"} < set(CONTROLS.own)


def test_the_preset_takes_over_only_the_papers_protocol() -> None:
    # Controls do not change what is reproduced.
    assert comparison_config("m", "t", preset="dai2023").controls == CHEAP_CONTROLS


def test_no_demonstrations_are_allowed_without_the_probe() -> None:
    assert comparison_config("m", "t", k=0, learners=("zsl", "icl", "ft")).k == 0


@pytest.mark.parametrize("preset", PRESETS)
def test_a_configuration_survives_yaml(preset: str, tmp_path: Path) -> None:
    words = {"0": "schlecht", "1": "größer: ja"}
    prompt = "Review: {text}\nSentiment:"
    config = comparison_config("m", "t", preset=preset, label_words=words, prompt=prompt)  # type: ignore[arg-type]
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json"), allow_unicode=True), encoding="utf-8")

    assert read_config(path) == config


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml does not exist"):
        read_config(tmp_path / "nothing.yaml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: [", "cannot be read as a configuration"),
        ("größer", "cannot be read as a configuration"),
        ("- model", "should hold settings as `name: value` lines"),
        ("task: t", "model: Field required"),
        ("{model: m, task: t, shots: 3}", "shots: .*3"),
    ],
)
def test_a_file_that_is_not_a_configuration_is_an_error_with_the_reason(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    # Not UTF-8 where there is an umlaut.
    path.write_text(text, encoding="latin-1")

    with pytest.raises(ConfigError, match=words):
        read_config(path)


def test_a_configuration_does_not_change() -> None:
    config = comparison_config("m", "t")

    with pytest.raises(ValueError, match="frozen"):
        config.k = 3
    assert isinstance(config, ComparisonConfig)
