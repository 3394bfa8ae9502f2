"""Every layout is undone by its inverse, for sizes that do and do not fill a panel."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import packing

sizes = st.integers(1, 70)


@settings(max_examples=60, deadline=None)
@given(sizes, sizes, st.sampled_from([1, 2, 4, 8]))
def test_panels(num_rows: int, num_columns: int, group: int) -> None:
    rows = torch.randn(num_rows, num_columns)
    panels = packing.panels_of(rows, group)
    assert panels.shape[2:] == (packing.LANES, group)
    assert torch.equal(packing.rows_of(panels, num_rows, num_columns), rows)


@settings(max_examples=60, deadline=None)
@given(sizes, sizes)
def test_nibbles(num_rows: int, num_columns: int) -> None:
    codes = torch.randint(0, 16, (num_rows, num_columns), dtype=torch.uint8)
    packed = packing.pack_nibbles(codes)
    assert torch.equal(packing.unpack_nibbles(packed, num_rows, num_columns), codes)


def test_a_lane_holds_a_pair_of_neighbours() -> None:
    rows = torch.arange(16 * 6).view(16, 6)
    panels = packing.panels_of(rows, 2)
    assert panels[0, 1, 3].tolist() == rows[3, 2:4].tolist()
