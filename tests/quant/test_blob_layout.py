"""The byte layout of blobs against a second computation of it, and what it promises to kernels."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blob_oracle import FORMATS, Layout
from moerun import _core

SIZES = st.one_of(st.integers(1, 300), st.sampled_from([40, 72, 128, 768, 2048, 2880]))


def core_layout(name: str, hidden: int, inter: int, bias: bool) -> _core.BlobLayout:
    return _core.BlobLayout(getattr(_core.WeightFormat, name), hidden, inter, bias)


def core_sections(layout: _core.BlobLayout, name: str) -> dict[str, int]:
    """Offsets by section, of those that the format has."""
    offsets = {}
    for matrix in ("gate_up", "down"):
        part = getattr(layout, matrix)
        offsets[f"{matrix}_codes"] = part.codes
        if FORMATS[name].scale is not None:
            offsets[f"{matrix}_scales"] = part.scales
        if FORMATS[name].zeros:
            offsets[f"{matrix}_zeros"] = part.zeros
    return offsets


@given(st.sampled_from(sorted(FORMATS)), SIZES, SIZES, st.booleans())
def test_offsets_and_sizes(name: str, hidden: int, inter: int, bias: bool) -> None:
    ours, expected = core_layout(name, hidden, inter, bias), Layout(name, hidden, inter, bias)
    offsets = core_sections(ours, name)
    if bias:
        offsets |= {"gate_up_bias": ours.gate_up_bias, "down_bias": ours.down_bias}
    assert offsets == {section: offset for section, (offset, _) in expected.sections.items()}
    assert ours.bytes == expected.bytes


@given(st.sampled_from(sorted(FORMATS)), SIZES, SIZES, st.booleans())
def test_sections_are_aligned_apart_and_followed_by_readable_bytes(
    name: str, hidden: int, inter: int, bias: bool
) -> None:
    ours, expected = core_layout(name, hidden, inter, bias), Layout(name, hidden, inter, bias)
    assert ours.bytes % 256 == 0
    end = 0
    for offset, nbytes in expected.sections.values():
        assert offset % 64 == 0
        assert offset >= end
        end = offset + nbytes
    assert ours.bytes >= end + 64
    for matrix in (ours.gate_up, ours.down):
        assert matrix.row_bytes % 64 == 0
        assert matrix.row_stride >= matrix.columns
        if matrix.scale_stride and FORMATS[name].group:
            assert matrix.scale_stride * FORMATS[name].group >= matrix.row_stride


@pytest.mark.parametrize(
    ("name", "bits"),
    [("bf16", 16), ("int8_g128", 8.125), ("int4_g32", 4.5), ("int4z_g128", 4.1875), ("mxfp4", 4.25)],
)
def test_bits_per_weight(name: str, bits: float) -> None:
    hidden, inter = 2048, 768
    nbytes = _core.weight_bytes(getattr(_core.WeightFormat, name), hidden, inter)
    assert nbytes * 8 == 3 * hidden * inter * bits
    # Alignment costs next to nothing at a real model's sizes.
    assert core_layout(name, hidden, inter, False).bytes <= nbytes * 1.005


@pytest.mark.parametrize(("hidden", "inter"), [(0, 8), (8, 0), (-1, 8), (2**40, 8)])
def test_sizes_that_cannot_be(hidden: int, inter: int) -> None:
    with pytest.raises(ValueError, match="sizes go from 1"):
        core_layout("bf16", hidden, inter, False)
