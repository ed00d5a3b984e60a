"""Makes transformers know the quantization method "arb" as soon as both packages are imported, in either order.

transformers' quantizers take longer to import than all of this package, so they are not imported here: a finder waits
for `transformers.quantizers.auto` and registers hf.py's classes right after that module has run.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

TARGET = "transformers.quantizers.auto"


def register() -> None:
    """Register now if transformers' quantizers are imported already, otherwise when they are."""
    if TARGET in sys.modules:
        _register_classes()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _register_classes() -> None:
    importlib.import_module(f"{__package__}.hf")  # registers its classes while it is imported


class _Finder(importlib.abc.MetaPathFinder):
    """Finds nothing itself: it lets the others find TARGET and wraps the loader."""

    def __init__(self) -> None:
        self._searching = False

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != TARGET or self._searching:
            return None
        self._searching = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._searching = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, inner: importlib.abc.Loader) -> None:
        self._inner = inner

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._inner.exec_module(module)
        if module.__spec__ is not None:
            module.__spec__.loader = self._inner
        _register_classes()
