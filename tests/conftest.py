import gc
import os
import shutil
from collections.abc import Iterator

# Read when transformers and huggingface_hub are imported, hence before anything else. No test asks the hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path

import hypothesis
import pytest
import torch
import transformers

from dualform.models.loading import locate
from dualform.models.loading.packaged import packaged_model
from tests.tiny import tiny_model, tiny_tokenizer

# Whether a test passes must not depend on how busy the machine is.
hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("untimed")

IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ
if IS_WORKER:
    # The workers share the cores; a pool of threads in each would have them wait for one another.
    torch.set_num_threads(1)

LONGEST = (
    "tests/test_docs.py",
    "tests/runs/test_sweep.py",
    "tests/cli/test_compare.py",
    "tests/golden/test_golden.py",
    "tests/test_readme.py",
    "tests/test_notebooks.py",
    "tests/studies/comparison/test_controls.py",
    "tests/runs/engines/test_ray_engine.py",
    "tests/test_benchmarks.py",
)
"""Files that take longest. A file stays with one worker, and a long one begun last leaves the other worker idle."""

SHALLOW_LAYERS = 3
"""Layers, of 30, of the packaged model where a test only shows that an example runs."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the longest files out first."""
    if IS_WORKER:
        places = {file: place for place, file in enumerate(LONGEST)}
        items.sort(key=lambda item: places.get(item.nodeid.partition("::")[0], len(places)))


def pytest_collection_finish() -> None:
    """Leave what imports and collection made out of every later search for garbage, and search less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)


@pytest.fixture(autouse=True, scope="session")
def _start() -> Path:
    """The folder that the tests were started in."""
    return Path.cwd()


@pytest.fixture(autouse=True, scope="module")
def _same_folder(_start: Path) -> Iterator[None]:
    """A file whose tests leave the process in another folder fails, instead of tests that run after it."""
    yield
    here = Path.cwd()
    os.chdir(_start)
    assert here == _start


@pytest.fixture(autouse=True)
def _own_cache(request: pytest.FixtureRequest, _empty_cache: Path) -> Iterator[None]:
    """Tests keep out of the user's cache, but for those marked real, which reuse the converted model there.

    What a model wrote is forgotten between tests: two of them may make the same model.
    """
    # The test's own monkeypatch would be undone after the other fixtures, and so bring back a folder that they left.
    with pytest.MonkeyPatch.context() as patch:
        if request.node.get_closest_marker("real") is None:
            shutil.rmtree(_empty_cache / "plain", ignore_errors=True)
            patch.setenv("DUALFORM_CACHE", str(_empty_cache))
        yield


@pytest.fixture(scope="session")
def _empty_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """The tokenizer of `tests.tiny`."""
    return tiny_tokenizer()


@pytest.fixture
def tiny(request: pytest.FixtureRequest) -> transformers.PreTrainedModel:
    """A tiny llama, new for each test; `@pytest.mark.parametrize("tiny", [...], indirect=True)` names families."""
    return tiny_model(getattr(request, "param", "llama"))


@pytest.fixture(scope="session")
def _shallow_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    whole, folder = packaged_model("smollm2-135m"), tmp_path_factory.mktemp("shallow") / "model"
    transformers.AutoTokenizer.from_pretrained(whole).save_pretrained(folder)
    transformers.AutoModelForCausalLM.from_pretrained(whole, num_hidden_layers=SHALLOW_LAYERS).save_pretrained(folder)
    return folder


@pytest.fixture
def shallow_packaged_model(_shallow_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few layers of the packaged model, under its name: documented examples take minutes with all of them.

    `test_golden` compares with the whole model, and `test_load` reads real text with it.
    """
    monkeypatch.setattr(locate, "packaged_model", lambda name: _shallow_folder)
