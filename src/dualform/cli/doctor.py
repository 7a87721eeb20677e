"""`dualform doctor`: how a model is read, and what could not be verified."""

import json
from typing import Annotated, Any

import typer

from dualform.cli.generated import study_command
from dualform.cli.guard import quiet_transformers
from dualform.studies.settings import StudyConfig

LOADING = ("device", "dtype", "trust_remote_code", "device_map", "max_memory", "offload_folder", "quantize")
"""Settings of every study that say how a model is loaded."""


@study_command(StudyConfig, only=LOADING)
def doctor(
    settings: dict[str, Any],
    model: Annotated[str, typer.Argument(help="As for compare")],
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON")] = False,
) -> None:
    """Show the layout found, the route that runs, the self-checks, and what is left unverified.

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
    found = examine(lm)
    if as_json:
        print(json.dumps(found.as_dict(), indent=2))
        return
    console = PlainConsole()
    facts = Table("what", "found", title=Text(model), title_justify="left")
    for what, value in found.facts.items():
        facts.add_row(what, Text(value))
    console.print(facts)
    checks = Table("check", "outcome", "largest deviation")
    for check in found.checks:
        checks.add_row(check.name, "passed" if check.passed else Text(check.note or "failed", style="red"), check.shown)
    console.print(checks)
    for note in found.notes:
        console.print(Text(f"Note: {note}", style="yellow"))
    for note in found.unverified:
        console.print(Text(f"Not verified: {note}", style="yellow"))
