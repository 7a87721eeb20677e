"""A divided or quantized model on the command line: the same numbers, or one message."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import QUICK, SMALL, Done, numbers, result_of
from tests.cli.test_mistakes import assert_refused
from tests.tiny import save_tiny

pytestmark = pytest.mark.usefixtures("quick_page")
Command = Callable[..., Done]


def test_a_comparison_from_disk_has_the_numbers_of_one_in_memory(dualform: Command, tmp_path: Path) -> None:
    result = {}
    for name, more in (("memory", []), ("disk", ["--device-map", '{"": "disk"}'])):
        # Weights on disk are not trained.
        read = ["--learners", "zsl,icl,fold,probe"]
        done = dualform("compare", "llama", "tickets.csv", *QUICK, *read, "--out", tmp_path / name, *more)
        assert done.code == 0, done.err
        result[name] = numbers(result_of(tmp_path / name))
    assert result["disk"]["config"].pop("device_map") == {"": "disk"}
    assert result["memory"]["config"].pop("device_map") is None
    # The whole model's products are packed, which adds up in another order; learning amplifies the rounding.
    _assert_near(result["disk"], result["memory"], tolerance=2e-3)


def _assert_near(result: Any, expected: Any, tolerance: float, where: str = "") -> None:
    if isinstance(expected, dict):
        assert result.keys() == expected.keys(), where
        for key in expected:
            _assert_near(result[key], expected[key], tolerance, f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(result) == len(expected), where
        for item, expected_item in zip(result, expected, strict=True):
            _assert_near(item, expected_item, tolerance, where)
    elif isinstance(expected, float):
        assert result == pytest.approx(expected, abs=tolerance, rel=tolerance, nan_ok=True), where
    else:
        assert result == expected, where


def test_doctor_shows_how_a_model_is_divided(dualform: Command) -> None:
    done = dualform("doctor", "gpt2", "--max-memory", "cpu=100KB", "--json")
    assert done.code == 0, done.err
    facts = json.loads(done.out)["facts"]
    assert "on disk, loaded when needed" in facts["weights"]
    assert facts["peak memory"].endswith("MiB")
    assert done.err == ""


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--device-map", "fast"], ["unknown device map 'fast'", "auto, balanced, sequential"]),
        (
            ["--device-map", '{"": 7}'],
            ["'the whole model' goes to 7", "choose cpu, disk or the number of an available GPU"],
        ),
        (["--device-map", '{"lm_head": "disk"}'], ["llama could not be loaded", "model.embed_tokens"]),
        (["--max-memory", "2GiB"], ["max_memory '2GiB' should look like cpu=2GiB,0=10GiB"]),
        (["--max-memory", "cpu=1GiB", "--device", "cpu"], ["device 'cpu' and device_map 'auto' were both given"]),
        (["--offload-folder", "tickets.csv"], ["cannot write", "tickets.csv", "--offload-folder"]),
        (["--quantize", "3bit"], ["quantize", "'8bit' or '4bit'"]),
        (["--quantize", "8bit", "--dtype", "float64"], ["dtype float64", "leave out one of them"]),
        (["--quantize", "8bit", "--learners", "ft"], ["ft", "add zsl, icl or probe"]),
    ],
)
def test_a_mistake_ends_in_one_message(more: list[str], words: list[str], dualform: Command, out: Path) -> None:
    settings = [*SMALL, "--seeds", "1", *([] if "--learners" in more else ["--learners", "zsl,icl"])]
    assert_refused(dualform("compare", "llama", "tickets.csv", *settings, "--out", out, *more), *words)


def test_a_folded_checkpoint_is_not_written_from_disk(dualform: Command, tmp_path: Path) -> None:
    done = dualform(
        *("fold", "llama", "tickets.csv", "--text", "body", "--label", "topic", "-k", "4", "--to", tmp_path / "to"),
        *("--device-map", '{"": "disk"}'),
    )
    assert_refused(done, "is offloaded, but a checkpoint is written from memory", "without --device-map")
    assert not (tmp_path / "to").exists()


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="weights are quantized by bitsandbytes")
def test_quantized_weights_can_be_used_and_the_result_states_their_limits(
    dualform: Command, tmp_path: Path, out: Path
) -> None:
    save_tiny("llama", tmp_path / "wide", hidden_size=64, intermediate_size=128)
    done = dualform(
        "compare", tmp_path / "wide", "tickets.csv", *SMALL, "--seeds", "1", "--quantize", "8bit", "--out", out
    )
    assert done.code == 0, done.err
    assert "cast from" not in done.err
    result = result_of(out)
    assert set(result["accuracy"]) == {"zsl", "icl", "probe"}
    assert result["similarity"] == {}
    assert result["controls"] == {}
    (note,) = [note for note in result["warnings"] if "8 bit" in note]
    assert any("depend slightly on the other queries" in note for note in result["warnings"])
    assert "a finetuning step is smaller than the rounding error" in note
    assert "ft, lora, fold and the measures that need them were left out" in note
    assert result["config"]["quantize"] == "8bit"
