"""`dualform doctor`: the structure found in a model, and the checks of how it is read."""

import json
from typing import Annotated, Any

import typer

from dualform.cli.generated import study_command
from dualform.cli.guard import quiet_transformers
from dualform.studies.settings import StudyConfig

LOADING = ("device", "dtype", "trust_remote_code", "device_map", "max_memory", "offload_folder", "quantize")
"""Settings of every study that determine how a model is loaded."""


@study_command(StudyConfig, only=LOADING)
def doctor(
    settings: dict[str, Any],
    model: Annotated[str, typer.Argument(help="As for compare")],
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON")] = False,
) -> None:
    """Show the structure found in a model, the route that is used, the self-checks, and what could not be verified.

    Examples:
      dualform doctor smollm2-135m

      dualform doctor ./checkpoint --json

      dualform doctor ./large --max-memory cpu=8GiB
    """
    from rich.table import Table
    from rich.text import Text

    from dualform.cli.printing import PlainConsole
    from dualform.models.loading.doctor import examine
    from dualform.models.loading.load import load_model

    quiet_transformers()
    lm = load_model(model, **settings)
    examination = examine(lm)
    if as_json:
        print(json.dumps(examination.as_dict(), indent=2))
        return
    console = PlainConsole()
    facts = Table("property", "value", title=Text(model), title_justify="left")
    for name, value in examination.facts.items():
        facts.add_row(name, Text(value))
    console.print(facts)
    checks = Table("check", "result", "largest deviation")
    for check in examination.checks:
        result = "passed" if check.passed else Text(check.note or "failed", style="red")
        checks.add_row(check.name, result, check.deviation_text)
    console.print(checks)
    for note in examination.notes:
        console.print(Text(f"Note: {note}", style="yellow"))
    for note in examination.unverified:
        console.print(Text(f"Not verified: {note}", style="yellow"))
