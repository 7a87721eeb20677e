from typing import Any

import pytest
import torch

from dualform.errors import ConfigError
from dualform.learners.adapted import AdaptedModel
from dualform.learners.reading_cache import ReadingCache
from dualform.studies.comparison.run import compare, compare_seed, required_seeds
from tests.studies.small import MemoryStore, numbers, small_config, small_lm, small_task

TWO_RATES: dict[str, Any] = {"rates": (1e-3, 1e-2), "seeds": (1, 2, 3)}


def test_seeds_run_alone_are_put_together_to_what_all_at_once_give() -> None:
    config = small_config(**TWO_RATES, learners=("zsl", "icl", "ft", "lora", "probe"), lora_rates=(1e-3, 1e-2))
    whole = compare(config, lm=small_lm(), task=small_task()).result
    store = MemoryStore()
    for seed in config.seeds:
        compare_seed(config, seed, lm=small_lm(), task=small_task(), pieces=store)

    together = compare(config, lm=small_lm(), task=small_task(), pieces=store).result

    assert store.put_names == ["seed 1", "seed 2", "seed 3"]
    assert numbers(together) == numbers(whole)


def test_a_later_seed_takes_the_learning_rate_of_the_first_and_not_its_own() -> None:
    config = small_config(**TWO_RATES)
    store = MemoryStore()
    first = compare_seed(config, 1, lm=small_lm(), task=small_task(), pieces=store).records[0]
    later = compare_seed(config, 3, lm=small_lm(), task=small_task(), pieces=store).records[0]

    assert later.rates["ft"] == first.rates["ft"]
    assert [(trial.seed, trial.learning_rate) for trial in later.trials] == [(3, first.rates["ft"])]
    assert [trial.learning_rate for trial in first.trials] == [1e-3, 1e-2]


def test_a_later_seed_without_the_first_runs_that_too() -> None:
    store = MemoryStore()

    compare_seed(small_config(**TWO_RATES), 3, lm=small_lm(), task=small_task(), pieces=store)

    assert store.put_names == ["seed 1", "seed 3"]


@pytest.mark.parametrize(
    ("changes", "behind"),
    [
        ({}, (1, 3)),
        ({"tune": "each"}, (3,)),
        ({"learners": ("zsl", "icl"), "controls": ()}, (3,)),
        ({"seeds": (3, 1)}, (3,)),
    ],
)
def test_a_seed_depends_on_the_first_only_if_it_takes_its_rate(
    changes: dict[str, Any], behind: tuple[int, ...]
) -> None:
    assert required_seeds(small_config(**(TWO_RATES | changes)), 3) == behind


def test_a_seed_that_must_be_chosen_among_all_cannot_be_run_alone() -> None:
    with pytest.raises(ConfigError, match="select icl chooses among all seeds"):
        compare_seed(small_config(select="icl"), 1, lm=small_lm(), task=small_task())


def test_zero_shot_is_read_once_for_all_seeds_and_changes_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config(learners=("zsl", "icl", "ft", "probe"))
    plain = compare(config, lm=small_lm(), task=small_task()).result
    readers: list[str] = []
    read_group = AdaptedModel.read_group

    def counted(self: AdaptedModel, *args: Any, **kwargs: Any) -> Any:
        readers.append(self.learner)
        return read_group(self, *args, **kwargs)

    monkeypatch.setattr(AdaptedModel, "read_group", counted)
    compare(config, lm=small_lm(), task=small_task())
    without = readers.count("zsl")
    readers.clear()
    memory = ReadingCache()
    remembered = compare(config, lm=small_lm(), task=small_task(), memory=memory).result

    assert numbers(remembered) == numbers(plain)
    # One group of queries; what controls read of a model of their own is not kept.
    assert len(memory) == 1
    assert without - readers.count("zsl") == 1
    # What was remembered counts with the time that it took.
    assert (remembered.cost["zsl"].query_seconds or 0) > 0


def test_a_full_memory_keeps_no_more_and_changes_no_number() -> None:
    config = small_config()
    memory = ReadingCache(most_bytes=1000)

    result = compare(config, lm=small_lm(), task=small_task(), memory=memory).result

    assert memory.bytes <= 1000
    assert len(memory) == 0
    assert numbers(result) == numbers(compare(config, lm=small_lm(), task=small_task()).result)


def test_other_queries_are_not_confused_with_cached_ones() -> None:
    memory = ReadingCache()
    compare(small_config(limit=8), lm=small_lm(), task=small_task(), memory=memory)

    other = compare(small_config(limit=7), lm=small_lm(), task=small_task(), memory=memory)

    plain = compare(small_config(limit=7), lm=small_lm(), task=small_task())
    for mine, true in zip(other.records, plain.records, strict=True):
        assert torch.equal(mine.log_probabilities["zsl"], true.log_probabilities["zsl"])
