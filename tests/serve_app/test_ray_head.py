"""The end of everything below a process, orphans and the deaf included."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]

SCRIPT = """
import ctypes, subprocess, sys, time
from serve_app.ray_head import PR_SET_CHILD_SUBREAPER, end_descendants
import psutil
ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
subprocess.Popen(["sh", "-c", "trap '' TERM; sleep 61 & wait"], start_new_session=True)
subprocess.Popen(["sh", "-c", "sleep 62 & exec true"])  # its child becomes an orphan, and so ours
time.sleep(0.5)
below = psutil.Process().children(recursive=True)
print(*(process.pid for process in below), flush=True)
end_descendants()
assert not psutil.Process().children(recursive=True)
"""


def test_every_descendant_is_ended() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) >= 3
    assert not any(psutil.pid_exists(pid) for pid in pids)
