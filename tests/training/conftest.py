"""The toy task of `forked.py`, for trainings in the test's own process too."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def toy() -> ModuleType:
    """The module `forked.py`: `toy.recipe(output, batch=...)`, `toy.ToyTask()`, `toy.run(recipe)`."""
    path = Path(__file__).with_name("forked.py")
    spec = importlib.util.spec_from_file_location("forked", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["forked"] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module
