"""A study: are long texts answered correctly less often than short ones, without demonstrations?"""

import time

import pyarrow as pa
from scipy.stats import spearmanr

from dualform import ZeroShot
from dualform.learners.adapted import answer_log_probabilities
from dualform.studies.experiment import Experiment
from dualform.studies.facts import own_result
from dualform.studies.settings import OneModelConfig
from dualform.studies.study import Study, StudyOutput, View


class LengthsConfig(OneModelConfig):
    """Whether long texts are harder: rank correlation of a text's length with being answered correctly."""


def run(config, context):
    start, task = time.perf_counter(), context.models.load_task(config)
    experiment = Experiment.of(config, context.models.load_model(config, config.model), task)
    adapted = ZeroShot(experiment.encoder.opening).adapt(experiment.lm, experiment.draw(config.seeds[0]).encoded)
    answers = answer_log_probabilities(adapted, experiment.lm, experiment.queries).argmax(dim=1)
    right = [answer == example.label for answer, example in zip(answers.tolist(), experiment.examples, strict=True)]
    lengths = [len(query.prompt) for query in experiment.queries]
    own = {"correlation": float(spearmanr(lengths, right).statistic), "n": len(right)}
    return StudyOutput(own_result("lengths", experiment, own, start), pa.table({"tokens": lengths, "right": right}))


def headlines(result):
    return [f"Rank correlation of length and right answers: {result.own['correlation']:.2f} (n = {result.own['n']})."]


STUDY = Study(
    name="lengths",
    noun="study of lengths",
    config=lambda: LengthsConfig,
    configure=LengthsConfig.from_settings,
    run=run,
    view=View(headlines),
)
