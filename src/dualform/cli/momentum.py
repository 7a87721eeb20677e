"""`dualform momentum`: trains models with and without momentum attention from scratch, and compares them."""

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
    name="momentum", help="Compare momentum attention (arXiv:2212.10559) with vanilla attention.", no_args_is_help=True
)


@app.command()
@study_command(TrainingConfig)
def train(
    settings: dict[str, Any],
    to: Annotated[Path, option("Folder of checkpoints and losses", OUTPUT, "--to")],
    cost: Annotated[bool, option("Print the cost of the recipe, and train nothing", OUTPUT)] = False,
    track: Track = "none",
) -> None:
    """Train a language model from scratch, with or without momentum; an interrupted training is resumed.

    Examples:
      dualform momentum train prose.txt --to runs/momentum --eta 0.3 --validation other.txt

      dualform momentum train prose.txt --to runs/vanilla --set tokens=2e6 --set learning_rate=2e-3

      dualform momentum train org/corpus --to runs/350m --recipe 350m --cost
    """
    from dualform.lab.recipe import load_recipe
    from dualform.studies.momentum.training import cost_sentences, train_alone

    config = checked(TrainingConfig, settings)
    recipe = load_recipe(config.recipe, **config.settings)
    if cost:
        for sentence in cost_sentences(recipe):
            print(sentence)
        return
    if only_planned(partial(_plan_of_training, recipe, config)):
        return
    from dualform.cli.progress import progress_bar
    from dualform.runs.trackers import open_tracker

    quiet_transformers()
    momentum = config.model_dump(include={"eta", "learned", "normalised"})
    tracked_settings = {**recipe.model_dump(mode="json"), **momentum}
    # Of several processes that train together, only the first one tracks the numbers.
    trackers = track if os.environ.get("RANK", "0") == "0" else "none"
    with open_tracker(
        trackers, project="dualform-momentum", run_name=to.resolve().name, config=tracked_settings, folder=to
    ) as tracker:
        try:
            with progress_bar() as bar:
                trained = train_alone(
                    recipe,
                    config.corpus,
                    to,
                    validation=config.validation,
                    **momentum,
                    device=config.device,
                    progress=bar,
                    tracker=tracker,
                )
        except KeyboardInterrupt:
            say("The last checkpoint is kept; run the same command to resume from it.")
            raise
        tracker.finish({"seconds": trained.step_seconds}, [to / "losses.jsonl"])
    last = trained.losses[-1]
    losses = f"training loss {last.loss:.3f}" + (
        "" if last.validation is None else f", validation loss {last.validation:.3f} nats per token"
    )
    print(f"{last.step:,} steps, {last.tokens:,} tokens: {losses}.")
    say(f"\nThe model: {trained.checkpoint}")
    for hint in tracker.where:
        say(hint)


def _plan_of_training(recipe: Any, config: TrainingConfig, machine: Any) -> Any:
    from dualform.studies.momentum.plan import SAMPLES, plan_training

    say(SAMPLES)
    return plan_training(recipe, config.corpus, config.validation, machine, eta=config.eta)


@app.command()
@study_command(MomentumConfig, folder="momentum-RECIPE")
def compare(settings: dict[str, Any], run: RunOptions) -> None:
    """Train vanilla and momentum models from the same initial weights on the same text, with several seeds.

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
