"""SCAFFOLD on the device (Karimireddy et al. 2020, arXiv 1910.06378): plain local SGD with control variates.

The correction is a part that any method can be given: :mod:`flsparse.clients.parts.control`.
"""

from dataclasses import dataclass
from typing import ClassVar

from flsparse.clients.core.method import LocalMethod, register


@register
@dataclass(kw_only=True)
class ScaffoldLocal(LocalMethod):
    """Plain local training; the part corrects its steps."""

    name: ClassVar[str] = "scaffold"
