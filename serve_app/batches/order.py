"""What the process that works on a batch is told on its stdin; it starts none."""

from __future__ import annotations

from typing import Any

import msgspec

from serve_app.batches.steps import Step


class Order(msgspec.Struct, frozen=True, kw_only=True):
    batch: str
    """Its folder."""
    step: Step
    config: dict[str, Any]
    """As FleetConfig.of takes it."""
