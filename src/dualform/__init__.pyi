"""The public names of dualform, each listed once: `__init__.py` reads this file and loads a name when it is used."""

from dualform._version import __version__ as __version__
from dualform.errors import DualformError as DualformError
from dualform.learners.finetuned import Finetuned as Finetuned
from dualform.learners.folded import Folded as Folded
from dualform.learners.lora import Lora as Lora
from dualform.learners.probe import LinearProbe as LinearProbe
from dualform.learners.prompting import InContext as InContext
from dualform.learners.prompting import ZeroShot as ZeroShot
from dualform.models.loading.load import load_model as load_model
from dualform.models.reading.capture import Recording as Recording
from dualform.models.reading.encoding import Encoder as Encoder
from dualform.models.reading.language_model import LanguageModel as LanguageModel
from dualform.ops.agreement import label_agreement as label_agreement
from dualform.ops.agreement import rec2ftp as rec2ftp
from dualform.ops.rank import kendall_tau_b as kendall_tau_b
from dualform.ops.similarity import sim_am as sim_am
from dualform.ops.similarity import sim_aou as sim_aou
from dualform.result import Result as Result
from dualform.runs.cell_store import CellStore as CellStore
from dualform.runs.engines.opening import open_engine as open_engine
from dualform.runs.store import RunFolder as RunFolder
from dualform.runs.sweep_config import read_sweep_file as read_sweep_file
from dualform.runs.sweep_run import run_sweep as run_sweep
from dualform.studies.comparison.config import comparison_config as comparison_config
from dualform.studies.comparison.run import compare as compare
from dualform.studies.fold.config import fold_config as fold_config
from dualform.studies.fold.run import fold as fold
from dualform.studies.folding.config import folding_config as folding_config
from dualform.studies.folding.run import folding as folding
from dualform.studies.laboratory.config import regression_config as regression_config
from dualform.studies.laboratory.run import run_laboratory as run_laboratory
from dualform.studies.momentum.config import momentum_config as momentum_config
from dualform.studies.momentum.run import compare_momentum as compare_momentum
from dualform.studies.pages import render_page as render_page
from dualform.studies.plan import plan_of as plan_of
from dualform.studies.selection.config import selection_config as selection_config
from dualform.studies.selection.run import selection as selection
from dualform.studies.stability.config import stability_config as stability_config
from dualform.studies.stability.run import stability as stability
from dualform.sweep_result import SweepResult as SweepResult
from dualform.tasks.demonstrations import Demonstrations as Demonstrations
from dualform.tasks.demonstrations import draw_demonstrations as draw_demonstrations
from dualform.tasks.sources import load_task as load_task
from dualform.tasks.task import Task as Task

__all__: list[str]
