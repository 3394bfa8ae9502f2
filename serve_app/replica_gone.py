"""ReplicaGone: what a call ends with that names a replica which Serve no longer routes to; it knows no replica.

It has a file of its own because Serve pickles replica_pin.py by value: a class in there is another one in each process.
"""

from __future__ import annotations


class ReplicaGone(LookupError):  # noqa: N818  (it names what happened)
    """The replica does not run (any more), as far as this handle knows; what it streams already goes on."""
