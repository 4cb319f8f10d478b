"""Times the experts of a layer, or takes what was timed before, and tells the engine what they cost."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from moerun import _core
from moerun.calibration import cache
from moerun.calibration.points import Points, expert_bytes_of, subject_of
from moerun.errors import GpuError

if TYPE_CHECKING:
    from moerun.engine import Layer

logger = logging.getLogger(__name__)

# A fit further off than this was timed while something else ran, and says less than a guess (heuristic: a
# quiet machine gives 5 to 20 %).
MOST_RESIDUAL = 0.4
_BAR_DELAY_SECONDS = 0.5  # what takes less leaves no trace on the terminal


def calibrate(layer: Layer) -> Points:
    """Times a layer's experts anew: seconds at most. Keeps the points, and tells the engine what comes out.

    Without a GPU only the CPU is timed, and nobody needs to be told. Points that no cost model fits, as
    something else kept the machine busy, are returned but neither kept nor told; a warning says so.

    Raises
    ------
    ValueError
        A layer of a single expert, which shows no difference between an expert and a batch.
    moerun.GpuError
        A call to the driver failed.
    """
    points = _time(layer)
    fitted = points.fit()
    off = max(fitted.cpu_residual, fitted.gpu_residual, fitted.copy_residual)
    if off > MOST_RESIDUAL:
        logger.warning(
            "the times of experts scatter by %.0f %%, something else was running: they are not used; run "
            "`moerun doctor --calibrate` on a quiet machine",
            100 * off,
        )
        return points
    _tell(layer, points)
    cache.save(subject_of(layer), points)
    return points


class Calibrator:
    """Gives the layers of an engine with a GPU their costs, by kind; a layer of a new kind is timed once.

    Parameters
    ----------
    mode
        "once": what this machine has not timed before is timed now; "cached": it is not, and costs begin with
        a guess; "off": all of them do.
    """

    def __init__(self, mode: str) -> None:
        self._mode = mode
        self._known: set[tuple[Any, ...]] = set()

    def ensure(self, layer: Layer) -> None:
        """Sees to it that the engine knows what an expert of this layer costs, as well as it can be known.

        A machine that cannot be timed is no error: costs begin with a guess then, and are learned from what
        is observed.
        """
        if self._mode == "off":
            return
        subject = subject_of(layer)
        kind = tuple(subject.values())
        if kind in self._known:
            return
        self._known.add(kind)
        found = cache.load(subject)
        try:
            if found is not None:
                _tell(layer, found)
            elif self._mode == "once":
                calibrate(layer)
        except (GpuError, ValueError) as error:
            logger.warning("costs begin with a guess, as they cannot be timed: %s", str(error))


def _time(layer: Layer) -> Points:
    from tqdm import tqdm

    engine, spec = layer.engine, layer.spec
    core, x_type = engine._core, getattr(_core.DType, layer.x_dtype)
    if spec.num_experts < 2:
        raise ValueError("a layer with a single expert cannot be calibrated")
    what = f"calibrating {spec.hidden_size} x {spec.intermediate_size} {layer.weight_format}"
    gpu: list[tuple[int, int, float, float]] = []
    copies: list[tuple[int, float]] = []
    on_gpu = engine._kernels is not None
    # disable=None: not where stderr is no terminal
    with tqdm(total=3 if on_gpu else 1, desc=what, disable=None, delay=_BAR_DELAY_SECONDS) as bar:
        cpu = core.time_cpu(layer._core, x_type)
        bar.update()
        if engine._kernels is not None:
            engine._kernels.ensure(layer._core, spec, layer.weight_format, layer.x_dtype)
            gpu = core.time_gpu(layer._core, x_type)
            bar.update()
            copies = core.time_copies(layer._core)
            bar.update()
    return Points(cpu, gpu, copies, expert_bytes_of(layer))


def _tell(layer: Layer, points: Points) -> None:
    calibration = points.fit()
    engine = layer.engine
    if engine.gpu is not None and points.gpu and points.copies:  # else the cache holds no expert
        engine._core.set_cost(layer._core, calibration.cost)
