"""The cost model: the fit finds what made the points and says how well; refreshing has bounds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moerun import policy

GRID = [(experts, tokens * experts) for experts in (1, 2, 4, 8) for tokens in (1, 4, 32)]
SHARES = [(e, n, share) for e, n in GRID for share in (0.5, 1.0)]
time = st.floats(0.5, 1000)


@given(time, time, time, time, time, time, time, st.floats(1e-5, 1e-3))
def test_fit_recovers_the_model_that_made_the_points(
    first: float,
    expert: float,
    token: float,
    gpu: float,
    gpu_token: float,
    part: float,
    fixed: float,
    per_byte: float,
) -> None:
    fitted = policy.fit(
        cpu=[(e, n, s, first + s * (e * expert + n * token) + e * (s < 1) * part) for e, n, s in SHARES],
        gpu=[(e, n, s, s * (e * gpu + n * gpu_token) + e * (s < 1) * 2 * part) for e, n, s in SHARES],
        copies=[(size, fixed + size * per_byte) for size in (1 << 16, 1 << 20, 1 << 23)],
        expert_bytes=5_000_000,
    )
    assert fitted.cost.cpu_first_us == pytest.approx(first, rel=1e-4, abs=1e-3)
    assert fitted.cost.cpu_expert_us == pytest.approx(expert, rel=1e-4, abs=1e-3)
    assert fitted.cost.cpu_token_us == pytest.approx(token, rel=1e-4, abs=1e-3)
    assert fitted.cost.gpu_expert_us == pytest.approx(gpu, rel=1e-4, abs=1e-3)
    assert fitted.cost.gpu_token_us == pytest.approx(gpu_token, rel=1e-4, abs=1e-3)
    assert fitted.cost.cpu_part_us == pytest.approx(part, rel=1e-4, abs=1e-3)
    assert fitted.cost.gpu_part_us == pytest.approx(2 * part, rel=1e-4, abs=1e-3)
    assert fitted.cost.copy_us == pytest.approx(fixed + 5_000_000 * per_byte, rel=1e-4)
    assert max(fitted.cpu_residual, fitted.gpu_residual, fitted.copy_residual) < 1e-5


def test_residual_is_the_relative_error_and_coefficients_are_never_negative() -> None:
    rng = np.random.default_rng(0)
    noise = 0.05
    points = [(e, n, 1.0, (e * 100 + n * 2) * (1 + noise * rng.standard_normal())) for e, n in GRID * 20]
    fitted = policy.fit(cpu=points, gpu=[], copies=[], expert_bytes=1)
    assert fitted.cpu_residual == pytest.approx(noise, rel=0.2)
    assert fitted.cost.cpu_expert_us == pytest.approx(100, rel=0.1)
    assert fitted.cost.cpu_part_us == 0  # no part was timed
    assert fitted.cost.gpu_expert_us == 0  # not timed: a machine without a GPU
    falling = policy.fit([(1, 1, 1, 9.0), (2, 2, 1, 6.0), (3, 7, 1, 5.0), (4, 9, 1, 2.0)], [], [], 1).cost
    assert min(falling.cpu_first_us, falling.cpu_expert_us, falling.cpu_token_us) >= 0


@pytest.mark.parametrize(
    "points",
    [
        [],
        [(1, 1, 1, 5.0), (2, 2, 1, 7.0)],
        [(1, 1, 1, 5.0), (2, 2, 1, 7.0), (3, 3, 1, 9.0)],  # tokens and experts grow together
        [(1, 1, 1, 0.0), (2, 2, 1, 7.0), (3, 5, 1, 9.0)],
        [(1, 1, 1, float("nan")), (2, 2, 1, 7.0), (3, 5, 1, 9.0)],
        [(1, 1, 0, 5.0), (2, 2, 1, 7.0), (3, 5, 1, 9.0)],  # no share of an expert
    ],
)
def test_points_that_determine_nothing_are_refused(points: list) -> None:
    with pytest.raises(ValueError, match="calibration"):
        policy.fit(points, [], [], 1)


def test_refresh_moves_one_resource_and_ignores_outliers() -> None:
    cost = policy.CostModel(10, 20, 30, 40, 50, 60, 70, 80)
    slower = policy.refresh(cost, "cpu", planned_us=100, observed_us=150, rate=0.1)
    assert slower.cpu_first_us == pytest.approx(10.5)
    assert slower.cpu_expert_us == pytest.approx(21)
    assert slower.cpu_token_us == pytest.approx(31.5)
    assert (slower.cpu_part_us, slower.gpu_part_us) == (pytest.approx(73.5), 80)
    assert (slower.gpu_expert_us, slower.gpu_token_us, slower.copy_us) == (40, 50, 60)
    assert policy.refresh(cost, "copy", 1, 1e9, rate=0.1).copy_us == pytest.approx(66)
    assert policy.refresh(cost, "gpu", 0, 0, rate=0.1).gpu_expert_us == 40
    for _ in range(200):
        cost = policy.refresh(cost, "copy", cost.copy_us, 90, rate=0.1)
    assert cost.copy_us == pytest.approx(90, rel=1e-3)


@pytest.mark.parametrize("bad", [-1, float("nan"), float("inf")])
def test_figures_must_be_times(bad: float) -> None:
    with pytest.raises(ValueError, match="copy_us"):
        policy.CostModel(0, 1, 1, 1, 1, bad)
