"""`dualform push`: uploads a folded model to the hub, after showing what would be uploaded."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dualform.cli.guard import guarded, say
from dualform.cli.options import OUTPUT, option


@guarded
def push(
    folder: Annotated[Path, typer.Argument(help="Folder written by dualform fold", show_default=False)],
    repository: Annotated[str, typer.Argument(help="OWNER/NAME on the hub", show_default=False)],
    upload: Annotated[bool, option("Upload the folder; otherwise it is only checked and shown", OUTPUT)] = False,
    public: Annotated[bool, option("Create a public repository instead of a private one", OUTPUT)] = False,
    accept_terms: Annotated[
        bool, option("Confirm that you accept the terms of the base model's licence", OUTPUT)
    ] = False,
    message: Annotated[str | None, option("Commit message", OUTPUT)] = None,
) -> None:
    """Show what would be uploaded to the hub; with --upload, upload it in one commit to a private repository.

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
        say("\nNothing was uploaded. Add --upload to upload it.")
        return
    uploaded = send(plan, message=message)
    say(f"\nUploaded: {uploaded.address}")
    if public and uploaded.private:
        say(
            f"Note: {plan.repo_id} already exists and is private; --public applies only to new repositories. Change "
            "its visibility in its settings on the hub."
        )


def _print(plan: Any) -> None:
    from rich.table import Table
    from rich.text import Text

    from dualform.cli.printing import PlainConsole
    from dualform.models.export.upload import card_metadata

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
    console.print(Text(f"The card's metadata:\n{card_metadata(plan)}"))
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
