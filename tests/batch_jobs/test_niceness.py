"""A job beside a fleet runs behind the host's others, and so does what it starts."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import os, subprocess, sys
from batch_jobs.niceness import give_way
give_way()
give_way()
print(os.getpriority(os.PRIO_PROCESS, 0))
subprocess.run([sys.executable, "-c", "import os; print(os.getpriority(os.PRIO_PROCESS, 0))"])
"""


def test_the_process_and_its_children_are_nice() -> None:
    told = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["15", "15"]
