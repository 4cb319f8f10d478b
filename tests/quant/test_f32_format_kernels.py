"""Quantised weights with fp32 activations: exact codes, fp32 sums, and codes that are not numbers.

With u = 2^-24, A = |gate| |x| and B = |up| |x|: a sum of K products, scaled once or twice, errs by at most
(K + 3) u A. silu changes by at most 1.1 times what its argument does and adds a few u of its own, so h errs
by at most (2.1 (H + 3) + 8) u A B, and y by (2.1 (H + 3) + I + 11) u |down| (A B).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from test_reference_kernels import batch, random_blob, silu_layer

from blob_oracle import QUANTISED, Layout
from expert_layers import ISAS_WITH_INT8_DOT
from moerun import Engine, _core

F32_ISAS = [isa for isa in _core.available_isas() if isa not in (*ISAS_WITH_INT8_DOT, "ref")]
TOKENS = (1, 2, 3, 4, 7, 16, 37)  # every width of a pass over rows; vectors, with and without a rest


def one_expert(layout: Layout, blob: np.ndarray, isa: str, batches: list[np.ndarray]) -> Iterator[np.ndarray]:
    """Outputs of a layer of one expert, for each x [tokens, H] fp32."""
    with Engine(isa=isa, cpu_threads=2) as engine:
        layer = engine._core.add_blobs(
            hidden=layout.hidden,
            inter=layout.inter,
            top_k=1,
            format=getattr(_core.WeightFormat, layout.name),
            activation=_core.ActivationSpec(_core.Activation.silu),
            bias=False,
            blobs=np.array([blob.ctypes.data], np.uint64),
            owner=blob,
        )
        for x in batches:
            out = np.empty_like(x)
            ids, weights = np.zeros((len(x), 1), np.int64), np.ones((len(x), 1), np.float32)
            engine._core.forward(layer, batch(x, ids, weights, out))
            yield out


def aligned_blob(layout: Layout, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    memory = np.empty(layout.bytes + 256, np.uint8)
    blob = memory[-memory.ctypes.data % 256 :][: layout.bytes]
    blob[:] = random_blob(layout, generator)
    return blob


@pytest.mark.parametrize("isa", F32_ISAS)
@pytest.mark.parametrize("name", QUANTISED)
@pytest.mark.parametrize(("hidden", "inter"), [(72, 40), (200, 136), (257, 33), (1030, 65)])
def test_codes_are_exact_and_sums_are_fp32(isa: str, name: str, hidden: int, inter: int) -> None:
    layout = Layout(name, hidden, inter, bias=False)
    blob = aligned_blob(layout, hidden)
    m = layout.weights(blob)
    x = np.random.default_rng(1).standard_normal((max(TOKENS), hidden)).astype(np.float32)
    rows = x.astype(np.float64)
    expected = silu_layer(m, rows)
    reach = (np.abs(rows) @ np.abs(m["gate"]).T) * (np.abs(rows) @ np.abs(m["up"]).T)
    allowed = (2.1 * (hidden + 3) + inter + 11) * 2.0**-24 * (reach @ np.abs(m["down"]).T)
    given = [x[:n] for n in TOKENS]
    for n, out in zip(TOKENS, one_expert(layout, blob, isa, given), strict=True):
        assert (np.abs(out - expected[:n]) <= allowed[:n]).all(), f"{n} tokens"


@pytest.mark.parametrize("isa", _core.available_isas())
@pytest.mark.parametrize(("name", "code"), [("fp8_b128", 0x7F), ("fp8_b128", 0xFF), ("mxfp4", 0xFF)])
def test_what_is_not_a_number_spoils_its_own_row(isa: str, name: str, code: int) -> None:
    """fp8: a code of NaN; mxfp4: a scale of NaN. In row 5 of down."""
    layout = Layout(name, 72, 40, bias=False)
    blob = aligned_blob(layout, 3)
    section = layout.section(blob, "down_codes" if name == "fp8_b128" else "down_scales").reshape(72, -1)
    section[5, 0] = code
    x = np.random.default_rng(4).standard_normal((16, 72)).astype(np.float32)
    for out in one_expert(layout, blob, isa, [x[:1], x]):
        assert list(np.flatnonzero(~np.isfinite(out).all(axis=0))) == [5]
        assert not np.isfinite(out[:, 5]).any()
