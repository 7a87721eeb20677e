"""Record the numbers of `cases` anew: `python -m tests.golden.record [NAME...]`.

Do so only where a number must change, and say why in the commit.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.golden.cases import CASES, make_inputs, numbers_in, run_case

RECORDED = Path(__file__).parent / "recorded"


def shortened(number: Any) -> Any:
    """Ten digits, more than any comparison looks at."""
    return float(f"{number:.10g}") if isinstance(number, float) else number


def main() -> None:
    """Run the commands named, all by default, and write a file for each."""
    names = sys.argv[1:] or list(CASES)
    with tempfile.TemporaryDirectory() as folder:
        make_inputs(Path(folder))
        os.chdir(folder)
        for name in names:
            own_cache = {} if CASES[name].real else {"DUALFORM_CACHE": f"{folder}/cache"}
            with patch.dict(os.environ, own_cache):
                numbers = numbers_in(run_case(CASES[name], Path(folder)))
            lines = ",\n".join(f"{json.dumps(path)}: {json.dumps(shortened(one))}" for path, one in numbers.items())
            (RECORDED / f"{name}.json").write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
            print(f"{name}: {len(numbers)} numbers")


if __name__ == "__main__":
    main()
