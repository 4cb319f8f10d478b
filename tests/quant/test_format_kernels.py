"""The kernels of every quantised format on every instruction set, against float64.

Where a row keeps activations in bf16, x, h and (in tiles) the scaled weights are rounded to bf16, with the
unit roundoff u = 2^-8. With A = |gate| |x| and B = |up| |x|: g and u err by at most 2 u A and 2 u B, silu
by 1.1 times that, h by (2.2 + 2 + 1) u A B, and down adds u: 6.2 u |down| (A B). fp32 sums are a small
part; 7 u allows for them. Roundings are independent: over a whole output they stay below 4 u of its norm.

int8 weights meet int8 activations with a scale per token and 64 elements: a code errs by 1 / (127 sqrt 12)
= 0.23 % of the block's largest, which is about 3 times the rms of x and 5 times that of h = silu(g) u. So x
brings 0.7 % into g and into u, sqrt 2 of it into h, and h itself 1.1 %: 1.5 % of the output's norm, and
never more than 2 %, what int8 may lose.

Where many tokens meet 4-bit weights as int8 too, a scale serves 32 elements with groups of 32, and 64 with
larger ones; codes are exact. Of 32, the largest is about 2.5 times the rms of x and 4 times that of h: 1.2 %,
and what int8 may lose is enough for both. Up to 8 tokens stay bf16.
"""

from __future__ import annotations

import numpy as np
import pytest
from test_reference_kernels import batch, random_blob, silu_layer

from blob_oracle import QUANTISED, Layout
from expert_layers import ISAS_WITH_INT8_DOT, ISAS_WITH_NIBBLE_TILES
from moerun import Engine, _core

EXPERTS = 3
ALLOWED = 7 * 2.0**-8
BF16_LOSS = 4 * 2.0**-8
INTEGER_LOSS = 0.02
MOST_ROW_TOKENS = 8  # of an expert, in bf16 with 4-bit weights: kMostRowTokens


@pytest.mark.parametrize("isa", _core.available_isas())
@pytest.mark.parametrize("name", QUANTISED)
@pytest.mark.parametrize(
    ("hidden", "inter", "tokens"), [(72, 40, 5), (200, 136, 1), (130, 33, 70), (288, 64, 13), (96, 161, 30)]
)
def test_equals_float64(isa: str, name: str, hidden: int, inter: int, tokens: int) -> None:
    layout = Layout(name, hidden, inter, bias=False)
    generator = np.random.default_rng(hidden)
    memory = np.empty(EXPERTS * layout.bytes + 256, np.uint8)
    blobs = memory[-memory.ctypes.data % 256 :][: EXPERTS * layout.bytes].reshape(EXPERTS, -1)
    for blob in blobs:
        blob[:] = random_blob(layout, generator)
    x = generator.standard_normal((tokens, hidden)).astype(np.float32)
    ids = generator.integers(0, EXPERTS, (tokens, 2))
    weights = generator.uniform(0.2, 1, (tokens, 2)).astype(np.float32)

    matrices = [layout.weights(blob) for blob in blobs]
    expected, magnitude = np.zeros((tokens, hidden)), np.zeros((tokens, hidden))
    for token in range(tokens):
        for expert, weight in zip(ids[token], weights[token], strict=True):
            m, row = matrices[expert], x[token].astype(np.float64)
            expected[token] += weight * silu_layer(m, row)
            reach = (np.abs(row) @ np.abs(m["gate"]).T) * (np.abs(row) @ np.abs(m["up"]).T)
            magnitude[token] += weight * (reach @ np.abs(m["down"]).T)

    with Engine(isa=isa, cpu_threads=2) as engine:
        layer = engine._core.add_blobs(
            hidden=hidden,
            inter=inter,
            top_k=2,
            format=getattr(_core.WeightFormat, name),
            activation=_core.ActivationSpec(_core.Activation.silu),
            bias=False,
            blobs=blobs.ctypes.data + np.arange(EXPERTS, dtype=np.uint64) * np.uint64(layout.bytes),
            owner=memory,
        )
        out = np.empty_like(x)
        engine._core.forward(layer, batch(x, ids, weights, out))
    assert (np.abs(out - expected) <= ALLOWED * magnitude).all()
    most_tokens = np.bincount(ids.ravel()).max()
    loss = INTEGER_LOSS if multiplies_int8(isa, name, most_tokens) else BF16_LOSS
    assert np.linalg.norm(out - expected) <= loss * np.linalg.norm(expected)


def multiplies_int8(isa: str, name: str, tokens: int) -> bool:
    if name.startswith("int8"):
        return isa in ISAS_WITH_INT8_DOT
    return isa in ISAS_WITH_NIBBLE_TILES and name != "fp8_b128" and tokens > MOST_ROW_TOKENS
