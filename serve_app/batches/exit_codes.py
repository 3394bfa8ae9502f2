"""How the process that works on a batch ends, as its parent reads it; codes of sysexits.h and of the command line."""

from __future__ import annotations

USER_ERROR = 2
"""Something to mend, told in the last line of the log."""
ORPHANED = 70
BUSY = 75
"""Another process works on the batch."""
