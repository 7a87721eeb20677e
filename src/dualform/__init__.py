"""dualform: does this model learn from its prompt as it would from gradients, and which should you use?

Importing the package is quick; each name loads what it needs when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dualform._version import __version__

if TYPE_CHECKING:
    from dualform.attention_record import AttentionRecord as AttentionRecord
    from dualform.errors import DualformError as DualformError
    from dualform.lab.corpus import build_corpus as build_corpus
    from dualform.lab.cost import training_cost as training_cost
    from dualform.lab.evaluation import corpus_loss as corpus_loss
    from dualform.lab.predictor_distance import ilwd as ilwd
    from dualform.lab.predictor_distance import spd as spd
    from dualform.lab.pretraining import pretrain as pretrain
    from dualform.lab.recipe import Recipe as Recipe
    from dualform.lab.recipe import load_recipe as load_recipe
    from dualform.lab.regression_tasks import RegressionTasks as RegressionTasks
    from dualform.lab.sources import find_source as find_source
    from dualform.lab.token_world import TokenWorld as TokenWorld
    from dualform.learners.finetuned import Finetuned as Finetuned
    from dualform.learners.folded import Folded as Folded
    from dualform.learners.gradient_step import GradientStep as GradientStep
    from dualform.learners.kv_momentum import KeyValueMomentum as KeyValueMomentum
    from dualform.learners.layer_causal import LayerCausal as LayerCausal
    from dualform.learners.lora import Lora as Lora
    from dualform.learners.mezo import Mezo as Mezo
    from dualform.learners.probe import LinearProbe as LinearProbe
    from dualform.learners.prompting import InContext as InContext
    from dualform.learners.prompting import ZeroShot as ZeroShot
    from dualform.learners.random_update import random_update as random_update
    from dualform.learners.rank_one import RankOne as RankOne
    from dualform.learners.rate import search_rate as search_rate
    from dualform.learners.task_vector import TaskVector as TaskVector
    from dualform.learners.thought import Thought as Thought
    from dualform.models.editing.convolution import apply_convolution as apply_convolution
    from dualform.models.editing.linear_attention import apply_linear_attention as apply_linear_attention
    from dualform.models.editing.momentum import MomentumSettings as MomentumSettings
    from dualform.models.editing.momentum import apply_momentum as apply_momentum
    from dualform.models.editing.momentum import momentum as momentum
    from dualform.models.editing.momentum import remove_momentum as remove_momentum
    from dualform.models.export.checkpoint import write_adapter as write_adapter
    from dualform.models.export.checkpoint import write_checkpoint as write_checkpoint
    from dualform.models.loading.load import load_model as load_model
    from dualform.models.reading.capture import Recording as Recording
    from dualform.models.reading.encoding import Encoder as Encoder
    from dualform.models.reading.generation import generate_texts as generate_texts
    from dualform.models.reading.language_model import LanguageModel as LanguageModel
    from dualform.models.reading.perplexity import perplexity as perplexity
    from dualform.models.reading.perplexity import text_losses as text_losses
    from dualform.models.structure.untrained import untrained as untrained
    from dualform.ops.agreement import kl_divergence as kl_divergence
    from dualform.ops.agreement import label_agreement as label_agreement
    from dualform.ops.agreement import overlap_cosine as overlap_cosine
    from dualform.ops.agreement import rec2ftp as rec2ftp
    from dualform.ops.agreement import top_k_overlap as top_k_overlap
    from dualform.ops.agreement import total_variation as total_variation
    from dualform.ops.calibration import contextual_calibration as contextual_calibration
    from dualform.ops.constructions import descend_by_layers as descend_by_layers
    from dualform.ops.constructions import gd_layer as gd_layer
    from dualform.ops.constructions import gd_plus_plus_layer as gd_plus_plus_layer
    from dualform.ops.constructions import ridge_by_layers as ridge_by_layers
    from dualform.ops.constructions import ridge_layer as ridge_layer
    from dualform.ops.dual_form import as_linear_attention as as_linear_attention
    from dualform.ops.dual_form import gradient_descent_update as gradient_descent_update
    from dualform.ops.dual_form import linear_attention as linear_attention
    from dualform.ops.dual_form import outer_product_update as outer_product_update
    from dualform.ops.dual_form import relaxation as relaxation
    from dualform.ops.fast_weights import FastWeightState as FastWeightState
    from dualform.ops.fast_weights import fast_weights as fast_weights
    from dualform.ops.fast_weights import inner_loss as inner_loss
    from dualform.ops.folding import rank_one_update as rank_one_update
    from dualform.ops.folding import thought_matrix as thought_matrix
    from dualform.ops.momentum import momentum_chunked as momentum_chunked
    from dualform.ops.momentum import momentum_naive as momentum_naive
    from dualform.ops.momentum import momentum_recurrent as momentum_recurrent
    from dualform.ops.momentum import momentum_step as momentum_step
    from dualform.ops.momentum_dual import momentum_linear_attention as momentum_linear_attention
    from dualform.ops.permutation import sign_flip_p as sign_flip_p
    from dualform.ops.power import minimum_detectable as minimum_detectable
    from dualform.ops.rank import ft_logits as ft_logits
    from dualform.ops.rank import icl_logits as icl_logits
    from dualform.ops.rank import kendall_tau_b as kendall_tau_b
    from dualform.ops.ridge import NormalEquations as NormalEquations
    from dualform.ops.similarity import direct_update as direct_update
    from dualform.ops.similarity import sim_am as sim_am
    from dualform.ops.similarity import sim_am_centred as sim_am_centred
    from dualform.ops.similarity import sim_am_delta as sim_am_delta
    from dualform.ops.similarity import sim_am_softmax as sim_am_softmax
    from dualform.ops.similarity import sim_aou as sim_aou
    from dualform.ops.similarity import sim_aou_raw as sim_aou_raw
    from dualform.ops.variance import variance_split as variance_split
    from dualform.result import Result as Result
    from dualform.runs.cell_store import CellStore as CellStore
    from dualform.runs.engines.base import open_engine as open_engine
    from dualform.runs.store import RunFolder as RunFolder
    from dualform.runs.sweep_config import SweepConfig as SweepConfig
    from dualform.runs.sweep_config import read_sweep_file as read_sweep_file
    from dualform.runs.sweep_run import run_sweep as run_sweep
    from dualform.runs.trackers import open_tracker as open_tracker
    from dualform.studies.comparison.config import ComparisonConfig as ComparisonConfig
    from dualform.studies.comparison.config import comparison_config as comparison_config
    from dualform.studies.comparison.config import read_config as read_config
    from dualform.studies.comparison.run import compare as compare
    from dualform.studies.comparison.run import compare_seed as compare_seed
    from dualform.studies.comparison.summary import examples_table as examples_table
    from dualform.studies.fold.config import FoldConfig as FoldConfig
    from dualform.studies.fold.config import fold_config as fold_config
    from dualform.studies.fold.run import fold as fold
    from dualform.studies.fold_settings import FoldSettings as FoldSettings
    from dualform.studies.folding.config import FoldingConfig as FoldingConfig
    from dualform.studies.folding.config import folding_config as folding_config
    from dualform.studies.folding.run import folding as folding
    from dualform.studies.folding.summary import folding_table as folding_table
    from dualform.studies.laboratory.config import RegressionConfig as RegressionConfig
    from dualform.studies.laboratory.config import regression_config as regression_config
    from dualform.studies.laboratory.run import laboratory_table as laboratory_table
    from dualform.studies.laboratory.run import run_laboratory as run_laboratory
    from dualform.studies.momentum.config import MomentumConfig as MomentumConfig
    from dualform.studies.momentum.config import momentum_config as momentum_config
    from dualform.studies.momentum.run import compare_momentum as compare_momentum
    from dualform.studies.momentum.summary import momentum_table as momentum_table
    from dualform.studies.momentum.training import train_alone as train_alone
    from dualform.studies.pages import render_page as render_page
    from dualform.studies.plan import plan_of as plan_of
    from dualform.studies.selection.config import SelectionConfig as SelectionConfig
    from dualform.studies.selection.config import selection_config as selection_config
    from dualform.studies.selection.run import selection as selection
    from dualform.studies.selection.summary import trials_table as trials_table
    from dualform.studies.stability.config import StabilityConfig as StabilityConfig
    from dualform.studies.stability.config import stability_config as stability_config
    from dualform.studies.stability.run import stability as stability
    from dualform.studies.stability.summary import runs_table as runs_table
    from dualform.sweep_result import SweepResult as SweepResult
    from dualform.tasks.demonstrations import Demonstrations as Demonstrations
    from dualform.tasks.demonstrations import draw_demonstrations as draw_demonstrations
    from dualform.tasks.sources import load_task as load_task
    from dualform.tasks.task import Task as Task

_HOMES = {
    "AttentionRecord": "attention_record",
    "CellStore": "runs.cell_store",
    "ComparisonConfig": "studies.comparison.config",
    "Demonstrations": "tasks.demonstrations",
    "DualformError": "errors",
    "Encoder": "models.reading.encoding",
    "FastWeightState": "ops.fast_weights",
    "Finetuned": "learners.finetuned",
    "FoldConfig": "studies.fold.config",
    "FoldSettings": "studies.fold_settings",
    "Folded": "learners.folded",
    "FoldingConfig": "studies.folding.config",
    "GradientStep": "learners.gradient_step",
    "InContext": "learners.prompting",
    "KeyValueMomentum": "learners.kv_momentum",
    "LanguageModel": "models.reading.language_model",
    "LayerCausal": "learners.layer_causal",
    "LinearProbe": "learners.probe",
    "Lora": "learners.lora",
    "Mezo": "learners.mezo",
    "MomentumConfig": "studies.momentum.config",
    "MomentumSettings": "models.editing.momentum",
    "NormalEquations": "ops.ridge",
    "RankOne": "learners.rank_one",
    "Recipe": "lab.recipe",
    "Recording": "models.reading.capture",
    "RegressionConfig": "studies.laboratory.config",
    "RegressionTasks": "lab.regression_tasks",
    "Result": "result",
    "RunFolder": "runs.store",
    "SelectionConfig": "studies.selection.config",
    "StabilityConfig": "studies.stability.config",
    "SweepConfig": "runs.sweep_config",
    "SweepResult": "sweep_result",
    "Task": "tasks.task",
    "TaskVector": "learners.task_vector",
    "Thought": "learners.thought",
    "TokenWorld": "lab.token_world",
    "ZeroShot": "learners.prompting",
    "apply_convolution": "models.editing.convolution",
    "apply_linear_attention": "models.editing.linear_attention",
    "apply_momentum": "models.editing.momentum",
    "as_linear_attention": "ops.dual_form",
    "build_corpus": "lab.corpus",
    "compare": "studies.comparison.run",
    "compare_momentum": "studies.momentum.run",
    "compare_seed": "studies.comparison.run",
    "comparison_config": "studies.comparison.config",
    "contextual_calibration": "ops.calibration",
    "corpus_loss": "lab.evaluation",
    "descend_by_layers": "ops.constructions",
    "direct_update": "ops.similarity",
    "draw_demonstrations": "tasks.demonstrations",
    "examples_table": "studies.comparison.summary",
    "fast_weights": "ops.fast_weights",
    "find_source": "lab.sources",
    "fold": "studies.fold.run",
    "fold_config": "studies.fold.config",
    "folding": "studies.folding.run",
    "folding_config": "studies.folding.config",
    "folding_table": "studies.folding.summary",
    "ft_logits": "ops.rank",
    "gd_layer": "ops.constructions",
    "gd_plus_plus_layer": "ops.constructions",
    "generate_texts": "models.reading.generation",
    "gradient_descent_update": "ops.dual_form",
    "icl_logits": "ops.rank",
    "ilwd": "lab.predictor_distance",
    "inner_loss": "ops.fast_weights",
    "kendall_tau_b": "ops.rank",
    "kl_divergence": "ops.agreement",
    "label_agreement": "ops.agreement",
    "laboratory_table": "studies.laboratory.run",
    "linear_attention": "ops.dual_form",
    "load_model": "models.loading.load",
    "load_recipe": "lab.recipe",
    "load_task": "tasks.sources",
    "minimum_detectable": "ops.power",
    "momentum": "models.editing.momentum",
    "momentum_chunked": "ops.momentum",
    "momentum_config": "studies.momentum.config",
    "momentum_linear_attention": "ops.momentum_dual",
    "momentum_naive": "ops.momentum",
    "momentum_recurrent": "ops.momentum",
    "momentum_step": "ops.momentum",
    "momentum_table": "studies.momentum.summary",
    "open_engine": "runs.engines.base",
    "open_tracker": "runs.trackers",
    "outer_product_update": "ops.dual_form",
    "overlap_cosine": "ops.agreement",
    "perplexity": "models.reading.perplexity",
    "plan_of": "studies.plan",
    "pretrain": "lab.pretraining",
    "random_update": "learners.random_update",
    "rank_one_update": "ops.folding",
    "read_config": "studies.comparison.config",
    "read_sweep_file": "runs.sweep_config",
    "rec2ftp": "ops.agreement",
    "regression_config": "studies.laboratory.config",
    "relaxation": "ops.dual_form",
    "remove_momentum": "models.editing.momentum",
    "render_page": "studies.pages",
    "ridge_by_layers": "ops.constructions",
    "ridge_layer": "ops.constructions",
    "run_laboratory": "studies.laboratory.run",
    "run_sweep": "runs.sweep_run",
    "runs_table": "studies.stability.summary",
    "search_rate": "learners.rate",
    "selection": "studies.selection.run",
    "selection_config": "studies.selection.config",
    "sign_flip_p": "ops.permutation",
    "sim_am": "ops.similarity",
    "sim_am_centred": "ops.similarity",
    "sim_am_delta": "ops.similarity",
    "sim_am_softmax": "ops.similarity",
    "sim_aou": "ops.similarity",
    "sim_aou_raw": "ops.similarity",
    "spd": "lab.predictor_distance",
    "stability": "studies.stability.run",
    "stability_config": "studies.stability.config",
    "text_losses": "models.reading.perplexity",
    "thought_matrix": "ops.folding",
    "top_k_overlap": "ops.agreement",
    "total_variation": "ops.agreement",
    "train_alone": "studies.momentum.training",
    "training_cost": "lab.cost",
    "trials_table": "studies.selection.summary",
    "untrained": "models.structure.untrained",
    "variance_split": "ops.variance",
    "write_adapter": "models.export.checkpoint",
    "write_checkpoint": "models.export.checkpoint",
}

__all__ = [
    "AttentionRecord",
    "CellStore",
    "ComparisonConfig",
    "Demonstrations",
    "DualformError",
    "Encoder",
    "FastWeightState",
    "Finetuned",
    "FoldConfig",
    "FoldSettings",
    "Folded",
    "FoldingConfig",
    "GradientStep",
    "InContext",
    "KeyValueMomentum",
    "LanguageModel",
    "LayerCausal",
    "LinearProbe",
    "Lora",
    "Mezo",
    "MomentumConfig",
    "MomentumSettings",
    "NormalEquations",
    "RankOne",
    "Recipe",
    "Recording",
    "RegressionConfig",
    "RegressionTasks",
    "Result",
    "RunFolder",
    "SelectionConfig",
    "StabilityConfig",
    "SweepConfig",
    "SweepResult",
    "Task",
    "TaskVector",
    "Thought",
    "TokenWorld",
    "ZeroShot",
    "__version__",
    "apply_convolution",
    "apply_linear_attention",
    "apply_momentum",
    "as_linear_attention",
    "build_corpus",
    "compare",
    "compare_momentum",
    "compare_seed",
    "comparison_config",
    "contextual_calibration",
    "corpus_loss",
    "descend_by_layers",
    "direct_update",
    "draw_demonstrations",
    "examples_table",
    "fast_weights",
    "find_source",
    "fold",
    "fold_config",
    "folding",
    "folding_config",
    "folding_table",
    "ft_logits",
    "gd_layer",
    "gd_plus_plus_layer",
    "generate_texts",
    "gradient_descent_update",
    "icl_logits",
    "ilwd",
    "inner_loss",
    "kendall_tau_b",
    "kl_divergence",
    "label_agreement",
    "laboratory_table",
    "linear_attention",
    "load_model",
    "load_recipe",
    "load_task",
    "minimum_detectable",
    "momentum",
    "momentum_chunked",
    "momentum_config",
    "momentum_linear_attention",
    "momentum_naive",
    "momentum_recurrent",
    "momentum_step",
    "momentum_table",
    "open_engine",
    "open_tracker",
    "outer_product_update",
    "overlap_cosine",
    "perplexity",
    "plan_of",
    "pretrain",
    "random_update",
    "rank_one_update",
    "read_config",
    "read_sweep_file",
    "rec2ftp",
    "regression_config",
    "relaxation",
    "remove_momentum",
    "render_page",
    "ridge_by_layers",
    "ridge_layer",
    "run_laboratory",
    "run_sweep",
    "runs_table",
    "search_rate",
    "selection",
    "selection_config",
    "sign_flip_p",
    "sim_am",
    "sim_am_centred",
    "sim_am_delta",
    "sim_am_softmax",
    "sim_aou",
    "sim_aou_raw",
    "spd",
    "stability",
    "stability_config",
    "text_losses",
    "thought_matrix",
    "top_k_overlap",
    "total_variation",
    "train_alone",
    "training_cost",
    "trials_table",
    "untrained",
    "variance_split",
    "write_adapter",
    "write_checkpoint",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dualform' has no attribute {name!r}")
    return getattr(import_module(f"dualform.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
