"""``kode-lab`` with a tie to whoever started it: it dies with its starter, however that ends.

It runs as ``python -m kode_lab.lab.die_with_parent serve ...``. Its stdin is a pipe whose other end
only the starter holds, and nothing ever comes through it but its end; then the process kills
itself, as the service under test is killed on purpose. A starter that was killed itself cleans up
nothing, and ``PR_SET_PDEATHSIG`` would confuse its end with that of one of its threads.

It must never know what the command does.
"""

from __future__ import annotations

import os
import runpy
import signal
import threading

__all__: list[str] = []


def _hang() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=_hang, name="tether", daemon=True).start()
    runpy.run_module("kode_lab", run_name="__main__", alter_sys=True)
