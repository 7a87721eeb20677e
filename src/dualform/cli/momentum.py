"""`dualform momentum`: models with momentum attention trained from nothing, beside vanilla ones."""

import os
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from dualform.cli.generated import study_command
from dualform.cli.guard import quiet_transformers, say
from dualform.cli.options import Track, option
from dualform.cli.planning import only_planned
from dualform.cli.running import RunOptions, run_study
from dualform.configuration import checked
from dualform.option import OUTPUT
from dualform.studies.momentum.config import MomentumConfig, TrainingConfig, momentum_config

app = typer.Typer(
    name="momentum", help="Momentum attention (arXiv:2212.10559) beside vanilla attention.", no_args_is_help=True
)


@app.command()
@study_command(TrainingConfig)
def train(
    settings: dict[str, Any],
    to: Annotated[Path, option("Folder of checkpoints and losses", OUTPUT, "--to")],
    cost: Annotated[bool, option("Say what the recipe costs, and train nothing", OUTPUT)] = False,
    track: Track = "none",
) -> None:
    """Train a language model from nothing, with or without momentum; goes on where it was interrupted.

    Examples:
      dualform momentum train prose.txt --to runs/momentum --eta 0.3 --validation other.txt

      dualform momentum train prose.txt --to runs/vanilla --set tokens=2e6 --set learning_rate=2e-3

      dualform momentum train org/corpus --to runs/350m --recipe 350m --cost
    """
    from dualform.lab.recipe import load_recipe
    from dualform.studies.momentum.training import cost_sentences, train_alone

    config = checked(TrainingConfig, settings)
    chosen = load_recipe(config.recipe, **config.settings)
    if cost:
        for sentence in cost_sentences(chosen):
            print(sentence)
        return
    if only_planned(partial(_plan_of_training, chosen, config)):
        return
    from dualform.cli.progress import progress_bar
    from dualform.runs.trackers import open_tracker

    quiet_transformers()
    momentum = config.model_dump(include={"eta", "learned", "normalised"})
    about = {**chosen.model_dump(mode="json"), **momentum}
    # Of several processes that train together, one has the numbers.
    asked = track if os.environ.get("RANK", "0") == "0" else "none"
    name = to.resolve().name
    with open_tracker(asked, project="dualform-momentum", run_name=name, config=about, folder=to) as tracker:
        try:
            with progress_bar() as bar:
                trained = train_alone(
                    chosen,
                    config.corpus,
                    to,
                    validation=config.validation,
                    **momentum,
                    device=config.device,
                    progress=bar,
                    tracker=tracker,
                )
        except KeyboardInterrupt:
            say("The last checkpoint is kept: the same command goes on from it.")
            raise
        tracker.finish({"seconds": trained.step_seconds}, [to / "losses.jsonl"])
    last = trained.losses[-1]
    shown = f"training loss {last.loss:.3f}" + (
        "" if last.validation is None else f", validation loss {last.validation:.3f} nats a token"
    )
    print(f"{last.step:,} steps, {last.tokens:,} tokens: {shown}.")
    say(f"\nThe model: {trained.checkpoint}")
    for how in tracker.where:
        say(how)


def _plan_of_training(recipe: Any, config: TrainingConfig, machine: Any) -> Any:
    from dualform.studies.momentum.plan import SAMPLES, plan_training

    say(SAMPLES)
    return plan_training(recipe, config.corpus, config.validation, machine, eta=config.eta)


@app.command()
@study_command(MomentumConfig, folder="momentum-RECIPE")
def compare(settings: dict[str, Any], run: RunOptions) -> None:
    """Train vanilla and momentum models from the same beginnings on the same text, several seeds, and compare.

    Examples:
      dualform momentum compare train.txt --validation validation.txt --test test.txt

      dualform momentum compare a.txt --validation b.txt --test c.txt --controls convolution,heavy-ball --regress

      dualform momentum compare a.txt --validation b.txt --test c.txt --tasks sst5,mr --data-dir data --seeds 1..3
    """
    config = momentum_config(**settings)

    run_study(
        "momentum",
        config,
        run,
        default=Path("runs") / f"momentum-{Path(config.recipe).stem}",
        kept="runs",
    )
