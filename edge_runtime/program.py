"""Our own modules as processes of their own: native code may abort, and its memory is given back."""

from __future__ import annotations

import sys


def command(module: str) -> list[str]:
    """The command that runs `module`; arguments may follow.

    It searches modules where this process does. `python -m` would begin with the current folder, where
    anybody's `json.py` may lie.
    """
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; import runpy; "
        f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    )
    return [sys.executable, "-c", code]
