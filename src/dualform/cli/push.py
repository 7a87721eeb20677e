"""`dualform push`: a folded model to the hub, shown before anything is sent."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dualform.cli.guard import guarded, say
from dualform.cli.options import OUTPUT, option


@guarded
def push(
    folder: Annotated[Path, typer.Argument(help="what dualform fold wrote", show_default=False)],
    repository: Annotated[str, typer.Argument(help="OWNER/NAME on the hub", show_default=False)],
    upload: Annotated[bool, option("Send it; without, it is only checked and shown", OUTPUT)] = False,
    public: Annotated[bool, option("Let everybody see it (private)", OUTPUT)] = False,
    accept_terms: Annotated[bool, option("You keep to the terms that the base model comes under", OUTPUT)] = False,
    message: Annotated[str | None, option("Of the commit", OUTPUT)] = None,
) -> None:
    """Show what would be sent to the hub, and with --upload send it: one commit, a private repository.

    Examples:
      dualform push folded me/smollm2-reviews

      dualform push folded me/smollm2-reviews --upload

      dualform push gemma-folded me/gemma-reviews --accept-terms --upload --public
    """
    from dualform.models.export.upload import plan_upload
    from dualform.models.export.upload import upload as send

    plan = plan_upload(folder, repository, private=not public, accept_terms=accept_terms)
    _print(plan)
    if not upload:
        say("\nNothing was sent. The same command with --upload sends it.")
        return
    sent = send(plan, message=message)
    say(f"\nSent: {sent.address}")
    if public and sent.private:
        say(
            f"Note: {plan.repo_id} was there already and is private, and --public changes only what it makes. Its "
            "settings on the hub open it."
        )


def _print(plan: Any) -> None:
    from rich.table import Table
    from rich.text import Text

    from dualform.cli.printing import PlainConsole
    from dualform.models.export.upload import shown_card

    console = PlainConsole()
    kind = "private" if plan.private else "public"
    console.print(Text(f"{plan.folder} to {plan.repo_id} ({kind}): {len(plan.files)} files, {_bytes(plan.size)}."))
    table = Table("File", box=None, pad_edge=False)
    table.add_column("Size", justify="right")
    for file in plan.files:
        table.add_row(Text(file.name), _bytes(file.size))
    console.print()
    console.print(table)
    console.print()
    console.print(Text(f"The card's metadata:\n{shown_card(plan)}"))
    for note in plan.notes:
        console.print(Text(f"Note: {note}", style="yellow"))


def _bytes(n: int) -> str:
    """`512 B`, `1.5 MB`."""
    size, unit = float(n), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
