"""How dualform reads every causal language model type of the installed transformers, as tiny random models.

    python tools/survey_families.py                  # all of them, about ten minutes on one core
    python tools/survey_families.py zamba2 xlnet     # some

Each model is loaded, asked for log-probabilities of answers behind a prompt, and compared with plain transformers:
the untouched model, in its own attention implementation, one uncached forward for each answer. What is recorded as the
input of W_O is compared with what a hook on the untouched model's W_O saw. Then a small comparison is run. A row of
the table is wrong where the deviation is more than rounding, or where anything but a DualformError was raised.
"""

import argparse
import sys
import time
import traceback
import warnings
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import transformers
from tests.families import TYPES, answers_off, heads_off, tiny_family
from tests.studies.small import small_task
from tests.tiny import tiny_tokenizer

from dualform.errors import DualformError
from dualform.models.reading.language_model import LanguageModel
from dualform.studies.comparison.config import comparison_config
from dualform.studies.comparison.run import compare


@dataclass
class Row:
    """What was found for one type."""

    model_type: str
    route: str = "-"
    layers: str = "-"
    answers: float | None = None
    heads: float | None = None
    missing: str = ""
    faults: list[str] = field(default_factory=list)
    refused: str = ""
    """The DualformError that ended the reading."""
    seconds: float = 0.0

    @property
    def wrong(self) -> bool:
        """Whether something here needs to be mended."""
        return bool(self.faults) or any(value is not None and not value < 2e-3 for value in (self.answers, self.heads))

    def __str__(self) -> str:
        values = ["-" if value is None else f"{value:.0e}" for value in (self.answers, self.heads)]
        remarks = " | ".join([*self.faults, self.refused, self.missing[:300]])
        mark = "WRONG" if self.wrong else "ok"
        return (
            f"{mark:5} {self.model_type:26} {self.route:11} {self.layers:8} {values[0]:>6} {values[1]:>6} "
            f"{self.seconds:5.1f}s {remarks}"
        )


def survey(model_type: str, comparing: bool) -> Row:
    """Try one type."""
    row = Row(model_type)
    start = time.perf_counter()
    try:
        plain, model = (tiny_family(model_type) for _ in range(2))
    except Exception as error:
        row.refused = f"not built: {type(error).__name__}: {error}"[:200]
        return row
    try:
        lm = LanguageModel.wrap(model, tiny_tokenizer(), model_type)
        row.route = lm.route.name
        row.layers = str(len(lm.anatomy.layers))
        row.missing = "; ".join(lm.anatomy.unclear)
        row.answers = answers_off(lm, plain)
        row.heads = heads_off(lm, plain)
        if comparing:
            run_comparison(lm, row)
    except DualformError as error:
        row.refused = f"{type(error).__name__}: {error}"
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        row.faults.append(f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"[:300])
    row.seconds = time.perf_counter() - start
    return row


def run_comparison(lm: LanguageModel, row: Row) -> None:
    """The default comparison, on a few made-up reviews."""
    config = comparison_config(
        lm.name,
        "made-up",
        k=2,
        seeds=(1,),
        limit=4,
        selection_limit=4,
        control_limit=4,
        resamples=20,
        explore=2,
        rates=(1e-3,),
        lora_rates=(1e-3,),
        fold={"calibration": "train", "plain": "none", "texts": 8},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = compare(config, lm=lm, task=small_task())
    row.missing = " ".join(done.result.warnings)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", help="model types; all where none is given")
    parser.add_argument("--no-compare", action="store_true", help="leave out the small comparison")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    rows = []
    for model_type in given.types or TYPES:
        rows.append(survey(model_type, not given.no_compare))
        print(rows[-1], flush=True)
    wrong = [row.model_type for row in rows if row.wrong]
    print(f"{len(rows)} types, {sum(row.answers is not None for row in rows)} read, {len(wrong)} wrong: {wrong}")


if __name__ == "__main__":
    main()
