"""The application: from overrides on the command line to a run, a sweep, or a preview of its bytes."""

from flsparse.app.main import main

__all__ = ["main"]
