"""Runs a function that may end its process, as a sanitizer's report does."""

from __future__ import annotations

import os
from collections.abc import Callable


def report_of(function: Callable[[], object]) -> tuple[int, str]:
    """(the wait status of a fork that calls `function`, what it and the sanitizers wrote)."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(writing, 1)
        os.dup2(writing, 2)
        try:
            function()
        except BaseException as error:  # The fork must not go on with its parent's work.
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(3)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        text = pipe.read().decode(errors="replace")
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text
