from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dualform.errors import ConfigError
from dualform.lab.windows import Windows, gather_windows, spread_windows

SIZES = st.tuples(st.integers(1, 9), st.integers(2, 200)).filter(lambda size: size[1] > size[0])


@settings(max_examples=60, deadline=None)
@given(size=SIZES, seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 5))
def test_an_epoch_is_every_window_once_and_no_token_is_predicted_twice(size, seed, epoch) -> None:
    length, count = size
    windows = Windows(count, length, seed)
    starts = windows.starts(epoch * windows.per_epoch, windows.per_epoch)
    assert starts.min() >= 0
    assert starts.max() + length < count
    ordered = np.sort(starts)
    assert (np.diff(ordered) == length).all()
    # Less than two windows' worth is left out: what lies before the first and behind the last.
    predicted = windows.per_epoch * length
    assert count - 1 - predicted < 2 * length


def test_every_token_is_predicted_as_often_in_the_long_run() -> None:
    windows = Windows(203, 8, seed=1)
    counts: Counter[int] = Counter()
    epochs = 400
    for start in windows.starts(0, epochs * windows.per_epoch):
        counts.update(range(start + 1, start + 9))
    inner = [counts[token] / epochs for token in range(9, 190)]
    # Each token is predicted once an epoch, but for the ends, which an epoch's beginning may leave out.
    assert min(inner) == max(inner) == 1
    assert 0 < counts[1] < epochs


def test_epochs_differ_in_order_and_in_where_they_begin() -> None:
    windows = Windows(1000, 10, seed=0)
    epochs = [windows.starts(i * windows.per_epoch, windows.per_epoch) for i in range(8)]
    assert len({int(starts.min()) % 10 for starts in epochs}) > 3
    orders = {tuple(((starts - starts.min()) // 10).tolist()) for starts in epochs}
    assert len(orders) == 8


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    ids = np.arange(1000, dtype=np.uint16)
    batches = [Windows(1000, 10, seed=3).batch(ids, step, 7) for step in range(40)]
    again = Windows(1000, 10, seed=3)
    for step in (39, 0, 17, 17, 3):  # in any order, across epochs
        assert torch.equal(again.batch(ids, step, 7), batches[step])
    other = Windows(1000, 10, seed=4)
    assert not torch.equal(other.batch(ids, 0, 7), batches[0])
    assert not torch.equal(batches[0], batches[1])


def test_a_window_is_its_tokens_and_the_one_after_them() -> None:
    ids = np.arange(1000, dtype=np.uint16)
    batch = Windows(1000, 10, seed=3).batch(ids, 5, 7)
    assert batch.shape == (7, 11)
    assert batch.dtype == torch.int64
    assert torch.equal(batch, batch[:, :1] + torch.arange(11))


@pytest.mark.parametrize("shares", [1, 2, 3, 6])
def test_the_shares_make_up_the_batch(shares: int) -> None:
    ids = np.arange(500, dtype=np.uint16)
    windows = Windows(500, 10, seed=0)
    parts = [windows.batch(ids, 9, 6, share, shares) for share in range(shares)]
    assert torch.equal(torch.cat(parts), windows.batch(ids, 9, 6))


def test_validation_windows_are_spread_over_the_text() -> None:
    assert spread_windows(1001, 10, 4).tolist() == [0, 250, 500, 750]
    assert spread_windows(1001, 10, 1000).tolist() == list(range(0, 1000, 10))
    assert spread_windows(11, 10, 3).tolist() == [0]
    ids = np.arange(1001)
    assert gather_windows(ids, spread_windows(1001, 10, 1000), 10)[-1, -1] == 1000


def test_a_text_shorter_than_a_window_is_refused() -> None:
    message = r"a corpus of 10 tokens has no window of 10 tokens and one to predict"
    with pytest.raises(ConfigError, match=message):
        Windows(10, 10, 0)
    with pytest.raises(ConfigError, match=message):
        spread_windows(10, 10, 1)
    assert Windows(11, 10, 0).starts(0, 3).tolist() == [0, 0, 0]
