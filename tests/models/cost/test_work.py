"""Work is counted from its steps; only a part of it is charged to a learner."""

import subprocess
import sys

from transformers import LlamaConfig

from dualform.models.cost.shape import shape_of_config
from dualform.models.cost.work import Decoding, Forward, FullTraining, Training, Work, encode, read, short_forwards
from dualform.models.reading.layout import Query

SHAPE = shape_of_config(
    LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=100,
    )
)  # fmt: skip
# Two blocks with W_Q, W_K, W_V, W_O and three matrices of the MLP.
WEIGHTS = 2 * (32 * 32 + 2 * 16 * 32 + 32 * 32 + 3 * 32 * 64)
HEAD = 32 * 100


def attention(pairs: float) -> float:
    """Scores and values of 4 heads of width 8 in 2 layers."""
    return 2 * 4 * 4 * 8 * pairs


def test_a_forward_is_counted_token_by_token_after_its_prefix():
    work = Work.of(Forward((3, 2), prefix=10, scored=2))
    assert (work.tokens, work.backward_tokens, work.passes) == (5, 0, 5)
    pairs = (3 * 10 + 6) + (2 * 10 + 3)
    assert work.flops(SHAPE) == 2 * WEIGHTS * 5 + attention(pairs) + 2 * HEAD * 2


def test_a_step_on_a_sequence_counts_as_three_readings_of_it():
    work = Work.of(Training(7, 6))
    assert (work.tokens, work.backward_tokens, work.passes) == (7, 7, 21)
    trained = 2 * 2 * 16 * 32
    assert work.flops(SHAPE) == 7 * (4 * WEIGHTS + 2 * trained) + 3 * attention(28) + 4 * HEAD * 6


def test_training_all_weights_is_three_forwards():
    work = Work.of(FullTraining(sequences=5, length=8, micro_batch=2))
    assert work.tokens == work.backward_tokens == 40
    assert work.flops(SHAPE) == 3 * 5 * (2 * WEIGHTS * 8 + attention(36) + 2 * HEAD * 8)
    again = Work.of(FullTraining(5, 8, 2, attends_twice=True))
    assert again.flops(SHAPE) - work.flops(SHAPE) == 3 * 5 * attention(36)


def test_texts_that_the_model_writes_cost_what_reading_them_with_the_head_costs():
    assert Work.of(Decoding((4, 6), 3)).flops(SHAPE) == Work.of(Forward((4, 6), 3, 10)).flops(SHAPE)


def test_queries_are_read_with_all_their_answers_but_the_last_tokens():
    queries = [Query((5, 6, 7), ((8,), (9, 10))), Query((5, 6), ((8,), (9,)))]
    work = read(queries, 4)
    assert work.tokens == (3 + 1) + 2
    assert work.flops(SHAPE) == SHAPE.forward(4, 4, 2) + SHAPE.forward(2, 4, 1)
    assert read(queries, 4, head=False).flops(SHAPE) == SHAPE.forward(4, 4, 0) + SHAPE.forward(2, 4, 0)


def test_overhead_is_planned_and_not_charged():
    work = encode(9) + encode(1).uncharged + short_forwards(2)
    assert work.tokens == 9 + 1 + 2 * 5
    assert work.charged.tokens == 9
    assert (work * 3).charged.tokens == 27
    assert (work * 3).tokens == 3 * work.tokens
    assert work.uncharged.charged == Work()
    overhead = SHAPE.forward(1, scored=0) + 2 * SHAPE.forward(5, scored=0)
    assert work.flops(SHAPE) - work.charged.flops(SHAPE) == overhead


def test_reading_nothing_is_no_work():
    assert encode(0) == short_forwards(0) == read([], 5) == Work()


def test_work_is_described_without_torch():
    code = "import sys; import dualform.models.cost.work; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
