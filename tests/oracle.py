"""What a layer of experts must compute, in float64, and how far a correct engine may be from it.

The layer is written as its formula says, one expert at a time, with the engine's inputs widened exactly.
Next to every number the oracle carries a bound on the error that the number formats allow:

* Unit roundoffs: 2^-p for p bits of significand, the implicit one included: fp32 u = 2^-24, fp16 2^-11,
  bf16 2^-8. Widening a weight or an activation to fp32 is exact.
* A sum of n products in fp32, in whatever order and with or without fused multiply-adds, is off by at most
  gamma_n * sum |a_i b_i| with gamma_n = n u / (1 - n u) (Higham, Accuracy and Stability, section 3.1). That
  needs all roundings to conspire. For independent roundings of mean zero, the error is sub-Gaussian with
  the parameter sigma = sqrt(n) u sum |a_i b_i| (Higham and Mary, SIAM J. Sci. Comput. 41(5), 2019, theorem
  3.1).
* An error of mean zero that cannot exceed b is sub-Gaussian with sigma = b (Hoeffding's lemma); a sum of
  factors f_i times independent errors has sigma^2 = sum f_i^2 sigma_i^2. Errors that are not of mean zero,
  as those of a polynomial for exp, meet factors (the weights) that are: in a test with random weights their
  sum grows alike.
* So every number carries a worst case and a sigma. A sub-Gaussian error exceeds LAMBDA * sigma with
  probability at most 2 exp(-LAMBDA^2 / 2), which is 2.5e-14 for LAMBDA = 8: one failure in ten million runs
  of a million outputs. The bound is the smaller of LAMBDA * sigma and the worst case.
* Activations: |act(g + d) - act(g)| <= LIPSCHITZ * |d| (relu2: 2 |g| |d| + d^2), and evaluating them costs
  at most ACTIVATION_ROUNDINGS roundings relative to |g| (relu2: to g^2): exp within 2 ulp = 4 u, an
  argument of three roundings (|t sigmoid'(t)| < 1/4 keeps their relative effect below 1), one addition, one
  division, up to three products, erf or tanh within 1 ulp.
* Where the kernels keep activations in a narrower type (`Narrow`: bf16 where x and weights are, on
  instruction sets with bf16 dot products; x's type on GPUs), h is rounded to it. Numbers below bf16's
  smallest normal 2^-126 count as zero there; fp16's subnormals are off by less than one of them.
* GPU kernels round some weights when they scale them: every product is off by the roundoff of that type, and
  in fp16 by half its smallest subnormal times |x|.
* Sums of products of codes that are scaled group by group have two roundings more per group.
* The output is rounded once to its type.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

LAMBDA = 8.0
UNIT_ROUNDOFF = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
SMALLEST_SUBNORMAL = {torch.float32: 2.0**-149, torch.bfloat16: 2.0**-133, torch.float16: 2.0**-24}
U = UNIT_ROUNDOFF[torch.float32]
TINY = 2.0**-126  # the smallest normal fp32 and bf16; what is lost below it is added to the bounds
LIPSCHITZ = 1.13  # of silu (1.0998), gelu (1.1289), gelu_tanh (1.1290) and gpt-oss's gate (silu, scaled)
ACTIVATION_ROUNDINGS = 16


@dataclass(frozen=True)
class Experts:
    """The experts of a layer as torch tensors: gate, up [E, I, H], down [E, H, I]; biases fp32 [E, I], [E,
    I], [E, H]."""

    gate: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor
    activation: str = "silu"
    gate_bias: torch.Tensor | None = None
    up_bias: torch.Tensor | None = None
    down_bias: torch.Tensor | None = None
    alpha: float = 1.702
    limit: float = 7.0

    @property
    def num_experts(self) -> int:
        return self.gate.shape[0]

    @property
    def hidden(self) -> int:
        return self.gate.shape[2]

    @property
    def inter(self) -> int:
        return self.gate.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self.gate.dtype


@dataclass(frozen=True)
class Narrow:
    """Where an engine keeps fewer digits than fp32 has."""

    activations: torch.dtype = torch.float32  # of h
    weights: torch.dtype = torch.float32  # of weights after they were scaled
    group: int = 0  # sums over as many columns are scaled, one after the other


FP32 = Narrow()


@dataclass(frozen=True)
class Error:
    """How far computed numbers may be from the exact ones: at most `worst`, and sub-Gaussian with `sigma`."""

    worst: torch.Tensor
    sigma: torch.Tensor

    @staticmethod
    def at_most(bound: torch.Tensor) -> Error:
        return Error(bound, bound)

    @property
    def bound(self) -> torch.Tensor:
        return torch.minimum(self.worst, LAMBDA * self.sigma)

    def __add__(self, other: Error) -> Error:
        return Error(self.worst + other.worst, (self.sigma**2 + other.sigma**2).sqrt())

    def times(self, factor: torch.Tensor) -> Error:
        """Elementwise."""
        return Error(self.worst * factor.abs(), self.sigma * factor.abs())

    def through(self, matrix: torch.Tensor) -> Error:
        """What becomes of independent errors [t, i] in the sums over i with matrix [n, i]: [t, n]."""
        return Error(self.worst @ matrix.abs().T, (self.sigma**2 @ (matrix**2).T).sqrt())


def of_sums(terms: int, magnitude: torch.Tensor) -> Error:
    """The error of sums of `terms` products in fp32 whose absolute values add up to `magnitude`."""
    return Error(magnitude * (terms * U / (1 - terms * U)), magnitude * (terms**0.5 * U))


@dataclass(frozen=True)
class Expected:
    """The layer's output [tokens, H] in float64, and the error that its computation in fp32 may have."""

    value: torch.Tensor
    bound: torch.Tensor

    def check(self, got: torch.Tensor) -> None:
        """Fails, saying where and by how much, if `got` is not within the bound after rounding to its
        type."""
        if got.numel() == 0:
            assert got.shape == self.value.shape
            return
        u, subnormal = UNIT_ROUNDOFF[got.dtype], SMALLEST_SUBNORMAL[got.dtype]
        allowed = self.bound + u * (self.value.abs() + self.bound) + subnormal / 2
        error = (got.to(torch.float64) - self.value).abs()
        wrong = ~(error <= allowed)
        if not wrong.any():
            return
        ratio = torch.where(wrong, error / allowed, 0.0).nan_to_num(float("inf"))
        token, column = divmod(int(ratio.argmax()), got.shape[1])
        of_tokens, of_columns = (wrong.any(d).nonzero().flatten().tolist()[:20] for d in (1, 0))
        raise AssertionError(
            f"{int(wrong.sum())} of {wrong.numel()} outputs are off, most at token {token}, column {column}: "
            f"got {got[token, column].item()!r}, expected {self.value[token, column].item()!r} within "
            f"{allowed[token, column].item():.3g}; tokens {of_tokens}, columns {of_columns}"
        )


def activate(kind: str, g: torch.Tensor, alpha: float, limit: float) -> torch.Tensor:
    """The activation of the gate's results."""
    if kind == "silu":
        return torch.nn.functional.silu(g)
    if kind == "gelu":
        return torch.nn.functional.gelu(g)
    if kind == "gelu_tanh":
        return torch.nn.functional.gelu(g, approximate="tanh")
    if kind == "relu2":
        return torch.relu(g) ** 2
    if kind == "swiglu_oai":
        g = g.clamp(max=limit)
        return g * torch.sigmoid(alpha * g)
    raise ValueError(kind)


def of_rounded_weights(w: torch.Tensor, x: torch.Tensor, to: torch.dtype) -> Error:
    """The error of x @ w.T when the weights are rounded to a narrow type: an independent one per product."""
    if to == torch.float32:
        return Error.at_most(torch.zeros(len(x), len(w), dtype=torch.float64))
    relative, absolute = UNIT_ROUNDOFF[to], SMALLEST_SUBNORMAL[to] / 2
    each = x.abs(), relative * w.abs() + absolute
    return Error(each[0] @ each[1].T, (each[0] ** 2 @ (each[1] ** 2).T).sqrt())


def one_expert(experts: Experts, e: int, x: torch.Tensor, narrow: Narrow) -> tuple[torch.Tensor, Error]:
    """down(act(gate(x)) * up(x)) of tokens x [tokens, H] in float64, and its error: both [tokens, H]."""

    def linear(
        weight: torch.Tensor, biases: torch.Tensor | None, of: torch.Tensor, error: Error | None
    ) -> tuple[torch.Tensor, Error]:
        w = weight.double()
        bias = torch.zeros(len(w)).double() if biases is None else biases[e].double()
        value, magnitude = of @ w.T + bias, of.abs() @ w.abs().T + bias.abs()
        columns = w.shape[1]
        terms = columns + 1 + (2 * -(-columns // narrow.group) if narrow.group else 0)
        rounded = of_rounded_weights(w, of, narrow.weights)
        if error is None:
            return value, rounded + of_sums(terms, magnitude + rounded.worst)
        carried = error.through(w) + rounded
        return value, carried + of_sums(terms, magnitude + carried.worst)

    g, g_error = linear(experts.gate[e], experts.gate_bias, x, None)
    u, u_error = linear(experts.up[e], experts.up_bias, x, None)
    a = activate(experts.activation, g, experts.alpha, experts.limit)
    if experts.activation == "relu2":
        a_error = g_error.times(2 * g) + Error.at_most(g_error.bound**2 + ACTIVATION_ROUNDINGS * U * g**2)
    else:
        lipschitz = torch.full_like(g, LIPSCHITZ)
        a_error = g_error.times(lipschitz) + Error.at_most(
            ACTIVATION_ROUNDINGS * U * (g.abs() + g_error.bound)
        )
    if experts.activation == "swiglu_oai":
        u = u.clamp(-experts.limit, experts.limit) + 1
        u_error = u_error + Error.at_most(U * u.abs())
    h = a * u
    h_error = a_error.times(u) + u_error.times(a) + Error.at_most(a_error.bound * u_error.bound)
    roundings, lost = 2 * U, 2 * TINY
    if narrow.activations != torch.float32:
        roundings += UNIT_ROUNDOFF[narrow.activations]
        lost += SMALLEST_SUBNORMAL[narrow.activations]
    h_error = h_error + Error.at_most(roundings * (h.abs() + h_error.bound) + lost)
    return linear(experts.down[e], experts.down_bias, h, h_error)


def layer(
    experts: Experts,
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    bf16_activations: bool = False,
    narrow: Narrow | None = None,
) -> Expected:
    """The weighted sum of each token's experts. Ids out of range are skipped, duplicates count as often as
    they occur.

    `bf16_activations`: the instruction set has bf16 dot products. They are used where x and the experts are
    bf16. `narrow` says it instead, whatever the types are.
    """
    tokens, hidden = x.shape
    if narrow is None:
        in_bf16 = bf16_activations and x.dtype == experts.dtype == torch.bfloat16
        narrow = Narrow(activations=torch.bfloat16) if in_bf16 else FP32
    value = torch.zeros(tokens, hidden, dtype=torch.float64)
    magnitude, total = torch.zeros_like(value), Error(torch.zeros_like(value), torch.zeros_like(value))
    for e in range(experts.num_experts):
        chosen = ids == e
        rows = chosen.any(1).nonzero().flatten()
        if len(rows) == 0:
            continue
        # An expert that occurs twice in a row errs the same way twice: its weights add up.
        w = (weights.double() * chosen)[rows].sum(1, keepdim=True)
        absolute = (weights.double().abs() * chosen)[rows].sum(1, keepdim=True)
        of_expert, error = one_expert(experts, e, x[rows].double(), narrow)
        value[rows] += w * of_expert
        magnitude[rows] += absolute * (of_expert.abs() + error.bound)
        error = error.times(absolute)
        total.worst[rows] += error.worst
        total.sigma[rows] = (total.sigma[rows] ** 2 + error.sigma**2).sqrt()
    # Below the smallest normal number a product's error is absolute.
    underflow = ids.shape[1] * SMALLEST_SUBNORMAL[torch.float32]
    return Expected(value, (total + of_sums(ids.shape[1] + 1, magnitude)).bound + underflow)
