"""`dualform advise`: which learner to use with how many labels."""

from typing import Any

from dualform.cli.generated import study_command
from dualform.cli.options import default_folder
from dualform.cli.running import RunOptions, run_study
from dualform.studies.advice.config import AdviceConfig, advice_config


@study_command(AdviceConfig, folder="MODEL-TASK-advice")
def advise(settings: dict[str, Any], run: RunOptions) -> None:
    """Advise whether to prompt, to finetune or neither, by the number of labels that you have.

    Examples:
      dualform advise smollm2-135m reviews

      dualform advise smollm2-135m tickets.csv --text body --label topic --labels 8,32,128

      dualform advise ./checkpoint sst2 --data-dir data --learners zsl,icl,lora,probe --seeds 1..5
    """
    config = advice_config(**settings)
    # Read before the large libraries are loaded, so that errors in the data are reported at once.
    task = config.load_local_task()
    folder = default_folder((config.model,), config.task, "advice")
    run_study("advise", config, run, task=task, default=folder, kept="draws")
