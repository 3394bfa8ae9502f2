"""How willingly a process runs beside others of its host; it starts none."""

from __future__ import annotations

import os

BEHIND_OTHERS = 15
"""As Ray's workers are, unless told otherwise; a fleet's own are not."""


def give_way() -> None:
    """This process, and all that it starts, run when the host's others leave a core: a job on what a fleet leaves idle
    would otherwise come before the engines that it shares."""
    if os.getpriority(os.PRIO_PROCESS, 0) < BEHIND_OTHERS:
        os.setpriority(os.PRIO_PROCESS, 0, BEHIND_OTHERS)
