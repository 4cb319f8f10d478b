"""act(gate) * up on fp32 sums, in Triton. The same formulas as cpu/kernels/activation_inl.h."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def gated(g, u, SHAPE: tl.constexpr):
    """With the activation of SHAPE, a contract.KernelShape."""
    KIND: tl.constexpr = SHAPE.activation
    if KIND == "silu":
        return g * tl.sigmoid(g) * u
    elif KIND == "gelu":
        return 0.5 * g * (1.0 + tl.erf(g * 0.7071067811865476)) * u
    elif KIND == "gelu_tanh":
        # 0.5 (1 + tanh z) = sigmoid(2 z), z = sqrt(2 / pi) (g + 0.044715 g^3)
        return g * tl.sigmoid(2.0 * 0.7978845608028654 * (g + 0.044715 * g * g * g)) * u
    elif KIND == "relu2":
        positive = tl.maximum(g, 0.0, propagate_nan=tl.PropagateNan.ALL)
        return positive * positive * u
    else:
        tl.static_assert(KIND == "swiglu_oai", "unknown activation")
        g = tl.minimum(g, SHAPE.limit, propagate_nan=tl.PropagateNan.ALL)
        u = tl.minimum(u, SHAPE.limit, propagate_nan=tl.PropagateNan.ALL)
        u = tl.maximum(u, -SHAPE.limit, propagate_nan=tl.PropagateNan.ALL)
        return g * tl.sigmoid(SHAPE.alpha * g) * (u + 1.0)
