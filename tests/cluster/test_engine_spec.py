"""EngineSpec: its one invariant, and that it travels as JSON and msgpack."""

from __future__ import annotations

import msgspec
import pytest

from cluster.accelerators import Accelerator
from cluster.engine_spec import EngineSpec
from cluster.variants import Variant


def test_whole_blocks_only() -> None:
    with pytest.raises(ValueError, match="kv_capacity_tokens 1000 is not a multiple of 16"):
        EngineSpec(
            replica_id="a", checkpoint="x", variant=Variant(name="bf16"), kv_capacity_tokens=1000, max_context=512
        )


def test_it_travels(host: Accelerator) -> None:
    spec = EngineSpec(
        replica_id="nf4-0",
        checkpoint="/models/a",
        variant=Variant(name="nf4", method="nf4", quality=0.8),
        kv_capacity_tokens=1024,
        max_context=512,
        accelerator=host,
    )
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(spec), type=EngineSpec) == spec
    assert msgspec.json.decode(msgspec.json.encode(spec), type=EngineSpec) == spec
