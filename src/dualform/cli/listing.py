"""`dualform models`, `tasks` and `learners`: the models, tasks and learners that are available."""

import json
from typing import Annotated

import typer

from dualform.cli.guard import guarded

_Json = Annotated[bool, typer.Option("--json", help="Print as JSON")]


@guarded
def models(as_json: _Json = False) -> None:
    """List the models that are available without the hub, and the other kinds of models that can be used.

    Examples:
      dualform models

      dualform models --json
    """
    from rich.table import Table
    from rich.text import Text

    from dualform.cli.printing import PlainConsole
    from dualform.models.loading.packaged import PACKAGED_MODELS, is_local

    rows = [
        {"name": name, "parameters": model.parameters, "local": is_local(name), "note": model.note}
        for name, model in PACKAGED_MODELS.items()
    ]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    table = Table("model", "parameters", "available", "description")
    for row in rows:
        table.add_row(
            Text(str(row["name"])),
            f"{row['parameters']:,}",
            "yes" if row["local"] else "on first use",
            Text(str(row["note"])),
        )
    console = PlainConsole()
    console.print(table)
    console.print(
        "Also: a folder with a checkpoint or a LoRA adapter, a .gguf file, or any causal model on the hub by its id."
    )
    console.print("[bold]dualform doctor MODEL[/bold] shows how a model is read and what could not be verified.")


@guarded
def tasks(
    data_dir: Annotated[str | None, typer.Option(help="Folder with data sets (or $DUALFORM_DATA)")] = None,
    as_json: _Json = False,
) -> None:
    """List the available tasks.

    Examples:
      dualform tasks

      dualform tasks --data-dir data
    """
    from dataclasses import asdict

    from rich.table import Table
    from rich.text import Text

    from dualform.cli.printing import PlainConsole
    from dualform.tasks.sources import available_tasks

    summaries = available_tasks(data_dir)
    if as_json:
        print(json.dumps([asdict(summary) for summary in summaries], indent=2))
        return
    table = Table("task", "label words", "available", "source")
    for summary in summaries:
        words = ", ".join(summary.label_words) if summary.label_words else "each example's own choices"
        # As Text, because square brackets in strings would be read as markup.
        available = "yes" if summary.local else "on first use"
        table.add_row(Text(summary.name), Text(words), available, Text(str(summary.where)))
    console = PlainConsole()
    console.print(table)
    console.print("Also: a CSV, TSV, JSONL or Parquet file with --text and --label, a YAML file, or a hub data set.")


@guarded
def learners(as_json: _Json = False) -> None:
    """List the learners that `--learners` accepts, with what each of them does.

    Examples:
      dualform learners

      dualform learners --json
    """
    from rich.table import Table
    from rich.text import Text

    from dualform.cli.printing import PlainConsole
    from dualform.learners.base import LEARNERS
    from dualform.report.palette import learner_style

    trained = {"nothing": "", "demonstrations": "the prompt's labels", "labelled": "all labels"}
    rows = [
        {
            "name": learner.name,
            "title": learner_style(learner.name).title,
            "trains_on": trained[learner.trains_on],
            "meaning": learner_style(learner.name).meaning,
        }
        for learner in LEARNERS
    ]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    table = Table("name", "learner", "trains on", "what it does")
    for row in rows:
        table.add_row(*(Text(value) for value in row.values()))
    PlainConsole().print(table)
