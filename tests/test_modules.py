import doctest
import importlib
import pkgutil

import pytest

import dualform

MODULES = [module.name for module in pkgutil.walk_packages(dualform.__path__, "dualform.")]


def test_every_module_can_be_imported_and_its_examples_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(MODULES) > 100
    for name in MODULES:
        if name == "dualform.__main__":
            continue
        assert doctest.testmod(importlib.import_module(name), exclude_empty=True).failed == 0, name
