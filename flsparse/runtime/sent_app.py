"""The Flower app that a run on a SuperLink sends: two files, its components the installed library's.

Before it runs an app, a SuperLink installs the app's dependencies with ``uv sync``: whatever package answers to a name.
Flower Hub's format demands ``flwr`` among them; ``exclude-dependencies`` leaves uv none to resolve, so that no index is
asked, and what runs is what the owners of the SuperLink and of the nodes have installed.
"""

from pathlib import Path

_PROJECT = """\
[project]
name = "flsparse-run"
version = "1.0.0"
description = "A federation run by flsparse"
license = { file = "LICENSE" }
dependencies = ["flwr>=1.41,<1.43"]

[tool.uv]
exclude-dependencies = ["flwr"]

[tool.flwr.app]
publisher = "flsparse"
fab-format-version = 1
flwr-version-target = "1.41.0"

[tool.flwr.app.components]
serverapp = "flsparse.runtime.apps:server"
clientapp = "flsparse.runtime.apps:client"

[tool.flwr.app.config]
cfg = "{}"
"""
_LICENSE = """\
Licensed under the Apache License, Version 2.0 (the "License"); you may not use this app except in compliance with the
License. You may obtain a copy of the License at https://www.apache.org/licenses/LICENSE-2.0
"""


def write_app(folder: Path) -> Path:
    """Write the app into a new folder, and return the folder.

    Its one run-config key, ``cfg``, takes the composed configuration as JSON.

    Raises
    ------
    FileExistsError
        The folder is there already.
    """
    folder.mkdir()
    (folder / "pyproject.toml").write_text(_PROJECT)
    (folder / "LICENSE").write_text(_LICENSE)
    return folder
