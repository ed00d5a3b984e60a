"""The `arbllm` command. Every command is a thin cover over the library."""

from __future__ import annotations

import sys

from ..errors import ArbError
from . import core, evaluation, folders, page, talk, tuning
from .common import app, errors

__all__ = ["app", "core", "evaluation", "folders", "main", "page", "talk", "tuning"]


def main() -> None:
    """Run the command; expected errors become one line and exit code 1."""
    try:
        app()
    except (ArbError, OSError) as error:
        errors.print(f"arbllm: {error}", style="red", markup=False)
        sys.exit(1)
