import importlib
import subprocess
import sys
from typing import Any

import pytest

from flsparse.tasks import torchvision_compat


def test_torchvision_imports_whichever_torch_it_was_built_for() -> None:
    code = (
        "from flsparse.tasks.torchvision_compat import import_torchvision\n"
        "assert import_torchvision('datasets').MNIST\n"
        "assert import_torchvision('models').resnet18\n"
        "import torchvision\n"
        "assert torchvision is import_torchvision()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_any_other_failure_passes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> Any:
        raise RuntimeError("operator torchvision::nms does not exist, nor does anything else")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(RuntimeError, match="nor does anything else"):
        torchvision_compat.import_torchvision("datasets")
