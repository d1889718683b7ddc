"""Which versions a result depends on."""

from __future__ import annotations

import platform

RECORDED_PACKAGES = ("labeler", "torch", "torchvision", "transformers", "timm", "pylance", "numpy", "pandas",
                     "pillow", "scikit-learn", "optuna")  # fmt: skip


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages a result depends on, without importing them."""
    import importlib.metadata  # takes as long as the rest of this module, in each decoding process

    found = {"python": platform.python_version()}
    for package in RECORDED_PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
