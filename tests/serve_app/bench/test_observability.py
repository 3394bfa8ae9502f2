"""What metrics cost, as it is told: a ratio a pair, their median and their spread."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from cluster.config import FleetConfig
from cluster.errors import UserError
from serve_app.bench.observability import Load, Pair, observability_table, pairs


def test_the_median_and_the_spread_stand_below_the_pairs() -> None:
    console = Console(width=100, file=StringIO())
    console.print(observability_table([Pair(on=98.0, off=100.0), Pair(on=104.0, off=100.0), Pair(on=99.0, off=100.0)]))
    assert isinstance(console.file, StringIO)
    assert "0.990 (0.980 to 1.040)" in console.file.getvalue().splitlines()[-2]


def test_a_fleet_that_does_not_start_is_told_with_its_own_words(config: FleetConfig) -> None:
    broken = config.model_copy(update={"model": config.model.model_copy(update={"source": "/nowhere/at/all"})})
    with pytest.raises(UserError, match=r"quantfleet serve ended: .*nowhere"):
        next(pairs(broken, Load(streams=1, requests=1), num_pairs=1))
