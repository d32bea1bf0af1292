"""Configurations of small runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_federation import small_config


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Return a maker of small configurations whose run folder is ``tmp_path / "run"``."""

    def make(**changes: Any) -> dict[str, Any]:
        return small_config(**({"output_dir": str(tmp_path / "run")} | changes))

    return make
