"""The components: the library's own, which may run this app's functions, since its code runs anyway."""

import os

os.environ["FLSPARSE_FACTORIES"] = "own_app.data:load,own_app.data:Net"

from flsparse.runtime.apps import client, server

__all__ = ["client", "server"]  # by which `flwr run` finds what another module has made
