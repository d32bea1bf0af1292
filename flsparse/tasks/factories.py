"""Functions of the user's own by their dotted names, for ``dataset=python`` and ``model=python``.

A name comes from the configuration of whoever starts the process. Where the configuration comes in a message, on a
device and on a SuperLink's server, :func:`flsparse.runtime.owner.check_factories` lets those through that its owner
allows.
"""

import importlib
import sys
from collections.abc import Callable, Mapping
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

from flsparse.configs import did_you_mean


def imported(name: str, key: str) -> Callable[..., Any]:
    """Return a function or class by ``package.module:name``; modules of the working folder are found, too.

    Parameters
    ----------
    name : str
    key : str
        The setting that holds it, for errors.

    Raises
    ------
    ValueError
        It is no such name, or nothing is there; the message says what is.
    """
    module_name, colon, attribute = name.partition(":")
    if not colon or not all(part.isidentifier() for part in [*module_name.split("."), attribute]):
        raise ValueError(f"{key}={name!r} is no dotted name of a function, such as mypackage.data:load")
    here = str(Path.cwd())
    sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there, and lacks another
        raise ValueError(
            f"{key}={name!r}: there is no module {error.name} here: install it, or start in the folder that holds it"
        ) from error
    finally:
        sys.path.remove(here)
    function = getattr(module, attribute, None)
    if not callable(function):
        functions = [each for each, value in vars(module).items() if callable(value) and not each.startswith("_")]
        raise ValueError(
            f"{key}={name!r}: {module_name} has no function {attribute}{did_you_mean(attribute, functions)}"
        )
    found: Callable[..., Any] = function
    return found


def called(settings: Mapping[str, Any], offered: Mapping[str, Any], what: str) -> Any:
    """Call the function that ``settings["factory"]`` names.

    Parameters
    ----------
    settings : Mapping
        ``factory`` and the function's own arguments, plain values; those that are null and that it does not take are
        left out.
    offered : Mapping
        Further arguments, each passed if the function takes it and the settings lack it.
    what : str
        Section of the configuration, for errors.

    Raises
    ------
    ValueError
        The name leads nowhere, an argument is unknown or missing, or the function refuses one.
    """
    given = dict(settings)
    name = given.pop("factory", None)
    if not isinstance(name, str):
        raise ValueError(
            f"{what}.factory must be set for python: the dotted name of a function, such as mypackage.data:load"
        )
    function = imported(name, f"{what}.factory")
    takes = signature(function).parameters
    anything = any(each.kind is Parameter.VAR_KEYWORD for each in takes.values())
    named = {
        key: each for key, each in takes.items() if each.kind not in (Parameter.VAR_KEYWORD, Parameter.VAR_POSITIONAL)
    }
    given = {key: value for key, value in given.items() if value is not None or key in named}
    for key in given:
        if key not in named and not anything:
            mend = did_you_mean(key, named) or f", which takes {', '.join(named) or 'none'}"
            raise ValueError(f"{what}.{key} is not a setting of {name}{mend}")
    given = {key: value for key, value in offered.items() if key in named} | given
    for key, each in named.items():
        if each.default is Parameter.empty and key not in given:
            raise ValueError(f"{what}.{key} must be set for {name}")
    return function(**given)
