"""`dualform momentum`: models with momentum attention trained from nothing, beside vanilla ones."""

import os
import re
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from dualform.cli.guard import guarded, quiet_transformers, say
from dualform.cli.options import (
    DATA,
    MACHINE,
    OUTPUT,
    PROTOCOL,
    AsJson,
    DataDir,
    Overwrite,
    Resamples,
    Track,
    one_or_several,
    option,
    parse_names,
    parse_numbers,
)
from dualform.cli.planning import only_planned
from dualform.cli.running import RunOptions, run_study

TRAINING = "Training"

app = typer.Typer(
    name="momentum", help="Momentum attention (arXiv:2212.10559) beside vanilla attention.", no_args_is_help=True
)

RecipeName = Annotated[str | None, option("tiny, small, 124m, 350m, or a YAML file (tiny)", TRAINING, "--recipe")]
Settings = Annotated[
    list[str] | None,
    option("A field of the recipe in place of its own, such as tokens=2e6; again for more", TRAINING, "--set"),
]
Validation = Annotated[list[str], option("Text on which losses are taken while training", DATA, "--validation")]
Where = Annotated[str | None, option("auto (a GPU if there is one), or cpu", MACHINE, "--device")]


@app.command()
@guarded
def train(
    corpus: Annotated[list[str], typer.Argument(help="text files (.txt, .jsonl, .gz), or one hub data set")],
    to: Annotated[Path, option("Folder of checkpoints and losses", OUTPUT, "--to")],
    validation: Annotated[list[str] | None, option("Text to take losses on", DATA, "--validation")] = None,
    recipe: RecipeName = None,
    settings: Settings = None,
    eta: Annotated[float, option("Decay of momentum a token; 0 is vanilla (0)", TRAINING)] = 0.0,
    learned: Annotated[bool, option("Learn eta, one a head, from --eta on", TRAINING)] = False,
    normalised: Annotated[bool, option("Let the weights of the past sum to 1", TRAINING)] = False,
    cost: Annotated[bool, option("Say what the recipe costs, and train nothing", OUTPUT)] = False,
    track: Track = "none",
    device: Where = None,
) -> None:
    """Train a language model from nothing, with or without momentum; goes on where it was interrupted.

    Examples:
      dualform momentum train prose.txt --to runs/momentum --eta 0.3 --validation other.txt

      dualform momentum train prose.txt --to runs/vanilla --set tokens=2e6 --set learning_rate=2e-3

      dualform momentum train org/corpus --to runs/350m --recipe 350m --cost
    """
    from dualform.lab.recipe import load_recipe
    from dualform.studies.momentum.training import cost_sentences, train_alone

    chosen = load_recipe(recipe or "tiny", **parse_settings(settings))
    if cost:
        for sentence in cost_sentences(chosen):
            print(sentence)
        return
    if only_planned(partial(_plan_of_training, chosen, corpus, validation or [], eta)):
        return
    from dualform.cli.progress import progress_bar
    from dualform.runs.trackers import open_tracker

    quiet_transformers()
    about = {**chosen.model_dump(mode="json"), "eta": eta, "learned": learned, "normalised": normalised}
    # Of several processes that train together, one has the numbers.
    asked = track if os.environ.get("RANK", "0") == "0" else "none"
    name = to.resolve().name
    with open_tracker(asked, project="dualform-momentum", run_name=name, config=about, folder=to) as tracker:
        try:
            with progress_bar() as bar:
                trained = train_alone(
                    chosen,
                    corpus,
                    to,
                    validation=validation or (),
                    eta=eta,
                    learned=learned,
                    normalised=normalised,
                    device=device or "auto",
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


def _plan_of_training(recipe: Any, corpus: list[str], validation: list[str], eta: float, machine: Any) -> Any:
    from dualform.studies.momentum.plan import plan_training

    return plan_training(recipe, corpus, validation, machine, eta=eta)


@app.command()
@guarded
def compare(
    corpus: Annotated[list[str], typer.Argument(help="text files (.txt, .jsonl, .gz), or one hub data set")],
    validation: Validation,
    test: Annotated[list[str], option("Text on which perplexities are reported", DATA, "--test")],
    out: Annotated[Path | None, option("Folder of the run. Default: runs/momentum-RECIPE", OUTPUT, "--out")] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    track: Track = "none",
    recipe: RecipeName = None,
    settings: Settings = None,
    etas: Annotated[str | None, option("Decays of momentum (0.1,0.3,0.5,0.9)", TRAINING)] = None,
    controls: Annotated[
        str | None,
        option(
            "Of normalised,learned,convolution,linear,linear-momentum,heavy-ball,nesterov; none (convolution)", TRAINING
        ),
    ] = None,
    control_eta: Annotated[float | None, option("Decay of these (0.3)", TRAINING)] = None,
    seed: Annotated[int | None, option("One seed", PROTOCOL)] = None,
    seeds: Annotated[str | None, option("Several: 1..7 or 1,4,9 (1..5)", PROTOCOL)] = None,
    test_tokens: Annotated[int | None, option("Most tokens of test text at a length (262144)", PROTOCOL)] = None,
    tasks: Annotated[str | None, option("Tasks to ask in context, such as sst5,mr,cb", PROTOCOL)] = None,
    k: Annotated[int | None, option("Demonstrations of a task's prompt (4)", PROTOCOL, "-k", "--k")] = None,
    limit: Annotated[int | None, option("Queries of each task (200; 0 for all)", PROTOCOL)] = None,
    regress: Annotated[bool, option("Train on in-context regression too", PROTOCOL)] = False,
    regression_steps: Annotated[int | None, option("Steps of that training (1000)", PROTOCOL)] = None,
    pretrained: Annotated[str | None, option("Models to put momentum into, such as smollm2-135m", PROTOCOL)] = None,
    pretrained_etas: Annotated[str | None, option("Decays that these get (0.1,0.3)", PROTOCOL)] = None,
    pretrained_steps: Annotated[int | None, option("Steps of their finetune (30; 0 for none)", PROTOCOL)] = None,
    resamples: Resamples = None,
    data_dir: DataDir = None,
    device: Where = None,
) -> None:
    """Train vanilla and momentum models from the same beginnings on the same text, several seeds, and compare.

    Examples:
      dualform momentum compare train.txt --validation validation.txt --test test.txt

      dualform momentum compare a.txt --validation b.txt --test c.txt --controls convolution,heavy-ball --regress

      dualform momentum compare a.txt --validation b.txt --test c.txt --tasks sst5,mr --data-dir data --seeds 1..3
    """
    from dualform.studies.momentum.config import momentum_config
    from dualform.studies.momentum.run import compare_momentum
    from dualform.studies.momentum.summary import momentum_table

    config = momentum_config(
        recipe=recipe,
        settings=parse_settings(settings),
        corpus=tuple(corpus),
        validation=tuple(validation),
        test=tuple(test),
        test_tokens=test_tokens,
        etas=parse_numbers("etas", etas),
        controls=() if controls == "none" else parse_names(controls),
        control_eta=control_eta,
        seeds=one_or_several(seed, seeds),
        tasks=parse_names(tasks),
        k=k,
        limit=limit,
        regress=regress or None,
        regression_steps=regression_steps,
        pretrained=parse_names(pretrained),
        pretrained_etas=parse_numbers("pretrained etas", pretrained_etas),
        pretrained_steps=pretrained_steps,
        resamples=resamples,
        data_dir=data_dir,
        device=device,
    )

    def carried_out(cells: Any, progress: Any) -> tuple[Any, Any]:
        study = compare_momentum(config, cells.path, cells=cells, progress=progress)
        return study.result, momentum_table(config, study.runs, study.tasks)

    run_study(
        config,
        carried_out,
        RunOptions(out, overwrite, as_json, track),
        default=Path("runs") / f"momentum-{Path(config.recipe).stem}",
        kept="runs",
        show=_print_tables,
    )


def _print_tables(result: Any) -> None:
    from dualform.cli.printing import print_study
    from dualform.studies.momentum.table import momentum_tables
    from dualform.studies.momentum.words import momentum_verdict

    print_study(momentum_verdict(result), momentum_tables(result), result.warnings)


def parse_settings(given: list[str] | None) -> dict[str, Any]:
    """`name=value` pairs; values are YAML, and numbers may be written 2e6.

    Raises:
        ConfigError: One is no such pair, two name the same field, or a recipe has no such field.
    """
    from dualform.errors import ConfigError
    from dualform.lab.recipe import Recipe
    from dualform.yaml_text import parse_yaml

    found: dict[str, Any] = {}
    for text in given or ():
        name, sign, value = text.partition("=")
        if not sign or not name or name in found:
            raise ConfigError(f"--set {text!r} should look like tokens=2e6, each field once")
        if name not in Recipe.model_fields:
            raise ConfigError(f"--set {text!r}: a recipe has no field {name!r}, but {', '.join(Recipe.model_fields)}")
        # YAML takes 2e6 for a word.
        number = re.fullmatch(r"(\d+\.?\d*|\.\d+)[eE][+-]?\d+", value)
        found[name] = float(value) if number else parse_yaml(value, ConfigError, f"--set {name}: not a value in YAML")
    return found
