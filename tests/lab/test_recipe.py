import math
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch.utils.flop_counter import FlopCounterMode

from dualform.errors import ConfigError
from dualform.lab.cost import training_cost
from dualform.lab.recipe import RECIPES, Recipe, load_recipe
from tests.lab.setting import small_recipe

PARAMETERS = {"tiny": 133_440, "small": 4_262_144, "124m": 123_587_328, "350m": 359_842_816}


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_recipe_is_of_the_size_that_it_says(name: str) -> None:
    recipe = load_recipe(name)
    assert training_cost(recipe).parameters == PARAMETERS[name]
    assert recipe.config().max_position_embeddings == recipe.length
    # So that nothing is left over, and what was asked for is what is read.
    assert recipe.tokens == recipe.steps * recipe.batch_tokens


def test_the_largest_recipe_is_the_papers_experiment() -> None:
    recipe = load_recipe("350m")
    config = recipe.config()
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (24, 1024, 16)
    assert (recipe.batch_tokens, recipe.steps, recipe.length) == (512 * 1024, 500_000, 1024)


def test_no_shipped_recipe_has_dropout() -> None:
    for name in RECIPES:
        config = load_recipe(name).config().to_dict()
        assert not any(value for field, value in config.items() if "drop" in field)


def test_a_recipe_comes_back_from_its_numbers(tmp_path: Path) -> None:
    recipe = load_recipe("small", seed=3, betas=(0.9, 0.99))
    assert Recipe(**recipe.model_dump(mode="json")) == recipe
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    assert recipe != load_recipe("small")


def test_a_file_of_ones_own_may_take_the_model_of_a_shipped_recipe(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("model: tiny\nvocab_size: 1024\nlength: 32\ntokens: 6400\nbatch_tokens: 64\nlearning_rate: 1e-3\n")
    recipe = load_recipe(path, learning_rate=2e-3)
    assert recipe.model == load_recipe("tiny").model
    assert (recipe.learning_rate, recipe.vocab_size, recipe.steps) == (2e-3, 1024, 100)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_tokens": 100}, r"batch_tokens 100 must be a multiple of length 16: 96 or 112"),
        ({"batch_tokens": 10}, r"batch_tokens 10 must be a multiple of length 16: 16$"),
        ({"tokens": 100}, r"tokens 100 must be at least one batch of 128"),
        ({"vocab_size": 256}, r"vocab_size: Input should be greater than or equal to 257 \(given 256\)"),
        ({"betas": (0.9, 1.0)}, r"betas \[0\.9, 1\.0\] must lie in \[0, 1\)"),
        ({"clip": math.inf}, r"clip inf must be finite"),
        ({"precision": "float16"}, r"precision: .*'float32', 'bfloat16' or 'float64'"),
        ({"warmups": 0.1}, r"warmups: Extra inputs are not permitted"),
        ({"model": "medium"}, r"model: must be a config or one of tiny, small, 124m, 350m \(given 'medium'\)"),
        ({"model": {}}, r"model_type None is not a causal language model"),
        ({"model": {"model_type": "lama"}}, r"model_type 'lama' is not a causal .*; did you mean 'llama'\?"),
        ({"model": {"model_type": "t5"}}, r"model_type 't5' is not a causal language model"),
        ({"model": {"model_type": "llama", "hiden_size": 8}}, r"no field 'hiden_size'; did you mean 'hidden_size'\?"),
        ({"model": {"model_type": "llama", "vocab_size": 8}}, r"vocab_size is a field of the recipe"),
        (
            {"model": {"model_type": "llama", "hidden_size": 30, "num_attention_heads": 4}},
            r"LlamaConfig does not accept this model: .*not a multiple",
        ),
        ({"model": {"model_type": "gpt2", "n_positions": 8}}, r"has 8 positions, but sequences are 16 tokens long"),
    ],
)
def test_a_wrong_setting_is_named_before_anything_is_built(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe("tiny", **({"length": 16, "batch_tokens": 128, "tokens": 1280} | settings))


def test_all_that_is_wrong_is_told_together() -> None:
    with pytest.raises(ConfigError, match=r"recipe tiny: length: .*; micro_batch: .*"):
        load_recipe("tiny", length=0, micro_batch=0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"recipe '.*mine\.yaml' is unknown: give one of tiny, small, 124m, 350m, or a YAML file"),
        ("- tiny", r"should hold settings as `name: value` lines"),
        ("a: [", r"cannot be read as a recipe"),
        ("model: tiny", r"vocab_size: Field required; .*"),
    ],
)
def test_a_file_that_is_no_recipe_is_told(content: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_recipe(path)


def test_a_recipe_does_not_change() -> None:
    with pytest.raises(ValidationError):
        small_recipe().seed = 3


def test_the_rate_rises_to_its_highest_and_falls_to_its_share() -> None:
    recipe = small_recipe(tokens=128 * 100, warmup=0.1, final_rate=0.2, learning_rate=0.5)
    rates = [recipe.rate(step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.05 * n for n in range(1, 11)])
    assert rates[10] == max(rates) == 0.5
    assert rates[-1] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    half = rates[10 + 89 // 2 : 12 + 89 // 2]
    assert sum(half) / 2 == pytest.approx(0.3)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0.0), (1, 0.9), (2, 0.5), (3, 0.99)])
def test_even_the_shortest_run_has_rates(steps: int, warmup: float) -> None:
    recipe = small_recipe(tokens=128 * steps, warmup=warmup)
    assert all(0 < recipe.rate(step) <= recipe.learning_rate for step in range(steps))


def test_the_initial_weights_depend_on_their_seed_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = (small_recipe(seed=seed, data_seed=n).build() for n, seed in enumerate((1, 1, 2)))
    assert torch.equal(torch.get_rng_state(), before)
    pairs = list(zip(first.parameters(), again.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(first, second) for first, second, _ in pairs)
    assert not all(torch.equal(first, second) for first, _, second in pairs)


def test_the_end_of_text_has_an_embedding_that_learns() -> None:
    model = small_recipe(model=small_recipe().model | {"tie_word_embeddings": False}).build(end_of_text=0)
    model(input_ids=torch.tensor([[0, 5, 0]])).logits.sum().backward()
    weight = model.get_input_embeddings().weight
    assert weight[0].any()
    assert weight.grad[0].any()
    # What would go wrong: a token that is called padding has no gradient in transformers.
    model = small_recipe(model=small_recipe().model | {"tie_word_embeddings": False, "pad_token_id": 0}).build()
    model(input_ids=torch.tensor([[0, 5, 0]])).logits.sum().backward()
    assert not model.get_input_embeddings().weight.grad[0].any()


@pytest.mark.parametrize(
    "model",
    [
        {},
        {"tie_word_embeddings": False, "head_dim": 16, "num_key_value_heads": 1},
        {"model_type": "gpt2", "n_embd": 32, "n_head": 4, "n_layer": 3},
        {"model_type": "gpt_neox", "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3},
    ],
)
def test_the_cost_is_what_pytorch_counts_of_a_step(model: dict[str, object]) -> None:
    given = model if "model_type" in model else small_recipe().model | model
    recipe = small_recipe(model=given, length=32, batch_tokens=64, tokens=640)
    cost = training_cost(recipe)
    built = recipe.build()
    assert cost.parameters == sum(parameter.numel() for parameter in built.parameters())
    built.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        built(input_ids=torch.zeros(2, 32, dtype=torch.long), use_cache=False).logits.sum().backward()
    # Eager attention computes the whole square, of which a causal model needs 33 / 64.
    config = recipe.config()
    d_head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    square = 3 * 2 * config.num_hidden_layers * 4 * config.num_attention_heads * d_head * 32 * 32
    # A rotary embedding multiplies positions by frequencies as a matrix; nothing else may differ.
    assert counter.get_total_flops() - square * 31 / 64 == pytest.approx(cost.flops / cost.steps, rel=2e-3)
    assert cost.flops_per_token == pytest.approx(cost.flops / cost.tokens)


def test_the_papers_run_costs_about_six_operations_a_weight_and_token() -> None:
    cost = training_cost(load_recipe("350m"))
    assert cost.tokens == 262_144_000_000
    assert 6 * cost.parameters < cost.flops_per_token < 7 * cost.parameters
    assert cost.state_bytes == 16 * cost.parameters
