"""What the engine answers to: the obvious way, written with transformers alone, and the cases to try it on."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import transformers
from torch import Tensor

from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.layout import Probe, Query
from tests.tiny import BOS_ID, EOS_ID, FAMILIES, WINDOW, tiny_model, tiny_tokenizer


@dataclass(frozen=True)
class Case:
    """One family, maybe with a setting of its own, and the routes that read it rightly."""

    family: str
    routes: tuple[str, ...]
    """Fastest first: the first is the one to be chosen."""
    registry: bool
    overrides: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        return "-".join([self.family, *(f"{name}={value}" for name, value in self.overrides)])

    def model(
        self, attn_implementation: str | None = None, dtype: torch.dtype = torch.float32
    ) -> transformers.PreTrainedModel:
        """A new model, untouched by dualform."""
        overrides: dict[str, Any] = dict(self.overrides)
        return tiny_model(self.family, attn_implementation=attn_implementation, dtype=dtype, **overrides)


_ALL = ("packed", "packed-mask", "repeated", "naive")
# One mask for all layers cannot say that some of them look back only so far.
_WINDOWED = ("packed", "repeated", "naive")

_SPECIAL: dict[str, tuple[tuple[str, ...], bool]] = {
    "gemma3": (_WINDOWED, True),
    "xglm": (_ALL[1:], False),
    "falcon": (_ALL[1:], False),
    # ALiBi is computed from a two-dimensional mask.
    "bloom": (_ALL[2:], False),
    "falcon-alibi": (_ALL[2:], False),
    # Its local layers count distance along the row.
    "gpt_neo": (_ALL[2:], False),
    # Its ALiBi counts from the end of the row, padding included.
    "mpt": (_ALL[3:], False),
}

CASES = (
    *(Case(family, *_SPECIAL.get(family, (_ALL, True))) for family in FAMILIES),
    Case("mistral", _WINDOWED, True, (("sliding_window", WINDOW),)),
)
BY_NAME = {str(case): case for case in CASES}
ROUTES = tuple((case, route) for case in CASES for route in case.routes)


def route_id(value: Any) -> str:
    """For pytest's ids."""
    return str(value)


@cache
def plain(case: Case, attn_implementation: str | None = None, dtype: torch.dtype = torch.float32) -> Any:
    """The model as transformers has it; tests only read it."""
    return case.model(attn_implementation, dtype)


@cache
def wrapped(case: Case, route: str | None = None, dtype: torch.dtype = torch.float32) -> Any:
    """The same model as a `LanguageModel`; tests only read it. (Any, because they look into much that may be None.)"""
    return LanguageModel.wrap(case.model(dtype=dtype), tiny_tokenizer(), str(case), route)


def _tokens(n: int, seed: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple((torch.randint(382, (n,), generator=generator) + 2).tolist())


# As demonstrations lie there: opening, then texts that end in the end-of-sequence token, which is also the padding.
PREFIX = (BOS_ID, *_tokens(12, 1), EOS_ID, *_tokens(17, 2), EOS_ID, *_tokens(9, 3), EOS_ID)
OPENING = (BOS_ID,)

QUERIES = (
    Query(_tokens(7, 4), ((20,), (21,))),
    Query(_tokens(1, 5), ((30, 31, 32), (33,))),
    Query(_tokens(11, 6), ((40, 41), (40, 42, 43), (44, 45, 46, 47))),
    Query(_tokens(7, 4), ((50, 51), (20,))),
    Query(_tokens(19, 7), ((60,),)),
    Query(_tokens(3, 8), ((70, 71), (72, 73))),
)


@cache
def expected_scores(case: Case, prefix: tuple[int, ...], query: Query, dtype: torch.dtype = torch.float32) -> Tensor:
    """`naive_scores` of the case's plain model."""
    return naive_scores(plain(case, None, dtype), prefix, query)


def naive_scores(model: Any, prefix: tuple[int, ...], query: Query) -> Tensor:
    """Mean log-probability of each answer's tokens, `(answer,)`: each answer alone, one plain forward."""
    found = []
    for answer in query.answers:
        ids = torch.tensor([[*prefix, *query.prompt, *answer]])
        with torch.no_grad():
            log_probabilities = torch.log_softmax(model(input_ids=ids, use_cache=False).logits[0], dim=-1)
        first = len(prefix) + len(query.prompt)
        found.append(torch.stack([log_probabilities[first - 1 + j, token] for j, token in enumerate(answer)]).mean())
    return torch.stack(found)


def probed_ids(prefix: tuple[int, ...], query: Query, probe: Probe) -> Tensor:
    """Everything up to the probe, `(1, pos)`; the probe is the last token."""
    more = query.answers[0] if probe == "label0" else ()
    return torch.tensor([[*prefix, *query.prompt, *more]])


def assert_no_hooks(model: torch.nn.Module) -> None:
    """Nothing of ours, or of anyone's, is left hanging on any module."""
    for name, module in model.named_modules():
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            assert not getattr(module, kind), f"{kind} on {name or 'the model'}"
