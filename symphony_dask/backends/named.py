"""Loads models that are named rather than sent: by import path, or by a file that workers can read. Loaders, all of
them.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from symphony_dask.errors import BadInput


def attribute(path: str, what: str = "model") -> Any:
    """What "module:attribute" names; raises ``BadInput``, which calls it ``what``."""
    module, _, name = path.partition(":")
    try:
        found: Any = import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise BadInput(f'{what} {path!r} cannot be found ({error}): write "module:attribute"') from None
    return found


def attribute_here(path: str, what: str = "model") -> Any:
    """``attribute``, of modules in the working folder, too."""
    if "" not in sys.path:
        sys.path.append("")
    return attribute(path, what)


@dataclass(frozen=True)
class ImportedFunction:
    """The function "module:attribute" of one argument, imported where it is first called."""

    path: str

    def __call__(self, argument: object) -> Any:
        return attribute_here(self.path, "function")(argument)


@dataclass(frozen=True)
class Imported:
    """The model "module:attribute", imported where it is loaded; called first if it is a loader itself."""

    path: str

    def __call__(self) -> Any:
        from symphony_dask.backends import as_spec

        found = attribute_here(self.path)
        return found() if as_spec(found).kind == "loader" else found


@dataclass(frozen=True)
class TorchScript:
    """A file of ``torch.jit.save``."""

    path: str

    def __call__(self) -> Any:
        import torch

        return torch.jit.load(self.path, map_location="cpu")  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Exported:
    """A file of ``torch.export.save``, whose first dimension must be dynamic for batches of more than one."""

    path: str

    def __call__(self) -> Any:
        import torch

        module: Any = torch.export.load(self.path).module()
        module.eval = lambda: module  # an exported module is in the mode it was exported in, and raises when asked
        return module
