"""Write the tables of fields in docs/result.md from the models of `result.json`, `sweep.json` and `attention.json`.

    python tools/result_reference.py

The page's prose is written by hand. Of each section that is named after a model, the table lists the model's fields:
name and type from the annotation, what it is from the field's own description in the source.
"""

import ast
import inspect
import itertools
import re
import sys
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from dualform import attention_record, result, sweep_result
from dualform.studies.study import STUDIES

PAGE = Path(__file__).parent.parent / "docs" / "result.md"
HEAD = "| field | type | what it is |\n|---|---|---|\n"

MORE: dict[str, tuple[str, ...]] = {
    "Estimate.ci95": ("measure-intervals", "measure-few-answers"),
    "Accuracy.macro_f1": ("measure-per-label",),
    "Classification.log_loss": ("measure-probabilities",),
    "Classification.brier": ("measure-probabilities",),
    "Classification.ece": ("measure-calibration-error",),
    "Classification.per_class": ("measure-per-label",),
    "Similarity.per_layer_q": ("measure-discoveries",),
    "Similarity.rounding": ("measure-rounding",),
    "Trial.rounding": ("measure-rounding",),
    "Calibrated.minimum_detectable": ("measure-smallest-difference",),
    "Calibrated.rounding": ("measure-rounding",),
    "PairedTest.minimum_detectable": ("measure-smallest-difference",),
    "LearnerStability.calibrated": ("measure-contextual-calibration",),
    "ChoiceScore.optimism": ("measure-optimism",),
    "Choice.select": ("measure-optimism",),
    "FoldPoint.perplexity_ratio": ("measure-perplexity",),
    "QueryAttention.ft_ranks": ("measure-kendall",),
    "Result.controls": ("measure-controls",),
    "Result.precision": ("measure-rounding",),
}
"""Places of the documentation that say more about a field."""


def schemas() -> list[types.ModuleType]:
    """Modules that define a file's models, those of our studies between `result` and the others."""
    studies = [sys.modules[STUDIES[name].result().__module__] for name in STUDIES.own]
    return list(dict.fromkeys([result, *studies, sweep_result, attention_record]))


def models() -> Iterator[type[BaseModel]]:
    """The models of the files."""
    for module in schemas():
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, BaseModel) and value.__module__ == module.__name__:
                yield value


def anchors(page: str) -> dict[str, str]:
    """Name of a model -> where the page has its section: the place named above the heading, else the heading's own."""
    headings = re.findall(r"^(?:\(([\w-]+)\)=\n)?### (\w+)$", page, flags=re.MULTILINE)
    return {name: place or name.lower() for place, name in headings}


def described(model: type[BaseModel]) -> dict[str, str]:
    """Field -> its description in the source, for the model's own fields."""
    # What pydantic does for models that ask for it; these do not, because it takes time at each import.
    body = ast.parse(textwrap.dedent(inspect.getsource(model))).body[0]
    assert isinstance(body, ast.ClassDef)
    descriptions = {}
    for field, text in itertools.pairwise(body.body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            value = text.value if isinstance(text, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                descriptions[field.target.id] = " ".join(value.value.split())
    return descriptions


def kind(annotation: Any, places: dict[str, str], many: bool = False) -> str:
    """A type in words: `seed → number or null`, `list of [Trial](#trial)`."""
    words = {float: "number", int: "integer", bool: "true or false", str: "text"}
    plural = {float: "numbers", int: "integers", bool: "truth values", str: "texts"}
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation in words:
        return (plural if many else words)[annotation]
    if annotation is Any:
        return "anything"
    if origin is Annotated:
        return kind(inner[0], places, many)
    if origin is Literal:
        return kind(type(inner[0]), places, many)
    if origin in (Union, types.UnionType):
        text = " or ".join(kind(argument, places, many) for argument in inner if argument is not types.NoneType)
        if types.NoneType not in inner:
            return text
        return f"{text}{',' if 'null' in text else ''} or {'nulls' if many else 'null'}"
    if origin is dict:
        if inner[1] is Any:
            return "objects" if many else "object"
        name = inner[0].__metadata__[0] if get_origin(inner[0]) is Annotated else kind(inner[0], places)
        return f"{name} → {kind(inner[1], places)}"
    if origin is tuple and inner[-1] is not ...:
        count = {2: "two", 3: "three"}[len(inner)]
        return f"{'pairs of' if many else count} {kind(inner[0], places, many=True)}"
    if origin in (list, tuple):
        return f"{'lists' if many else 'list'} of {kind(inner[0], places, many=True)}"
    return link(annotation.__name__, places)


def what(text: str, name: str, places: dict[str, str]) -> str:
    """A description as a table's cell: as JSON calls things, with links to other models and to places that say more."""
    text = re.sub(r"(?:(?<=\. )|^)None\b", "Null", text.removesuffix("."))
    text = re.sub(r"\bNone\b", "null", text)
    text = re.sub(r"`(\w+)`", lambda match: link(match[1], places) if match[1] in places else match[0], text)
    text = re.sub(r"(?<!`)arXiv:(\d+\.\d+)", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)
    more = [f"[more](#{place})" for place in MORE.get(name, ())]
    text = " ".join([f"{text};" if more else text, *([", ".join(more)] if more else [])])
    return text.replace("|", "\\|")


def link(model: str, places: dict[str, str]) -> str:
    """A link to the section of a model."""
    return f"[{model}](#{places[model]})"


def table(model: type[BaseModel], places: dict[str, str]) -> str:
    """The fields of a model that its base does not have, as a table in Markdown."""
    texts = described(model)
    rows = []
    for name in inspect.get_annotations(model):
        if (field := model.model_fields.get(name)) is None:
            continue
        text = what(texts.get(name, ""), f"{model.__name__}.{name}", places)
        rows.append(f"| `{field.alias or name}` | {kind(field.annotation, places)} | {text} |\n")
    return HEAD + "".join(rows)


def reference(page: str) -> str:
    """The page with its tables of fields made anew."""
    places = anchors(page)
    for model in models():
        if model.__name__ not in places:
            continue
        before, heading, section = page.partition(f"### {model.__name__}\n")
        prose, _, rest = section.partition(HEAD)
        page = before + heading + prose + table(model, places) + re.sub(r"\A(?:\|.*\n)*", "", rest)
    return page


def main() -> None:
    """Write the page."""
    PAGE.write_text(reference(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
