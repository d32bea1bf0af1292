"""The examples in docstrings say what is so."""

import doctest
import importlib
import pkgutil

import pytest

import flsparse

MODULES = [each.name for each in pkgutil.walk_packages(flsparse.__path__, "flsparse.") if "__main__" not in each.name]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0
