"""labeler: emotion and topic labels for image+text pairs.

From Python, `load_run` opens a trained run and `label` labels pairs with it; each stage is a function of its own module.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from labeler.predicting import label as label
    from labeler.runs import load_run as load_run

__version__ = "0.1.0"
__all__ = ["label", "load_run"]
_OFFERED = {"label": "labeler.predicting", "load_run": "labeler.runs"}


def __getattr__(name: str) -> Any:
    """Return what is offered here when it is asked for, since it brings PyTorch with it."""
    if name in _OFFERED:
        return getattr(importlib.import_module(_OFFERED[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the module's names, those that are brought on demand among them: what completion and `help` show."""
    return sorted({*globals(), *_OFFERED})
