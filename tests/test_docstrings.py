"""The examples in docstrings run."""

import doctest
import importlib

import pytest

import flashvideo


def modules_with_examples():
    import pkgutil
    from pathlib import Path

    for module in pkgutil.walk_packages(flashvideo.__path__, prefix="flashvideo."):
        path = Path(module.module_finder.path, *module.name.rpartition(".")[2:])
        source = path / "__init__.py" if module.ispkg else path.with_suffix(".py")
        if ">>> " in source.read_text(encoding="utf-8"):
            yield module.name


@pytest.mark.parametrize("name", ["flashvideo", *modules_with_examples()])
def test_the_examples_in_docstrings_give_what_they_say(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted
    assert not result.failed
