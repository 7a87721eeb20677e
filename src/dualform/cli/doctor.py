"""`dualform doctor`: how a model is read, and what could not be verified."""

import json
from typing import Annotated

import typer

from dualform.cli.guard import guarded, quiet_transformers
from dualform.cli.options import DeviceMap, MaxMemory, OffloadFolder, Quantize


@guarded
def doctor(
    model: Annotated[str, typer.Argument(help="As for compare")],
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, float64, bfloat16, float16")] = "float32",
    trust_remote_code: Annotated[bool, typer.Option(help="Run code that comes with the checkpoint")] = False,
    device_map: DeviceMap = None,
    max_memory: MaxMemory = None,
    offload_folder: OffloadFolder = None,
    quantize: Quantize = None,
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
    from dualform.models.doctor import examine
    from dualform.models.load import load_model

    quiet_transformers()
    lm = load_model(
        model,
        device=device,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        device_map=device_map,
        max_memory=max_memory,
        offload_folder=offload_folder,
        quantize=quantize,
    )
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
