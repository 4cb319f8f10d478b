"""Timed points of one kind of expert, and the name of what they were timed on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from moerun import policy
from moerun.quant.blobs import layout_of

if TYPE_CHECKING:
    from moerun.engine import Layer


@dataclass(frozen=True)
class Points:
    """What was timed, in microseconds; `moerun.policy.fit` makes a cost model of it.

    ``cpu`` and ``gpu``: (experts, tokens of all of them together, the share of each that ran, us);
    ``copies``: (bytes, us). The last two are empty without a GPU. ``expert_bytes``: one expert in host
    memory, and in a slot of the GPU's cache.
    """

    cpu: list[tuple[int, int, float, float]]
    gpu: list[tuple[int, int, float, float]]
    copies: list[tuple[int, float]]
    expert_bytes: int

    def fit(self) -> policy.Calibration:
        """The cost model, and how far it is from the points.

        Raises
        ------
        ValueError
            Points that determine no cost model: of a single expert, or with times that are none.
        """
        return policy.fit(self.cpu, self.gpu, self.copies, self.expert_bytes)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> Points:
        """Raises KeyError, TypeError or ValueError if it is not what as_dict gave."""
        return cls(
            cpu=[(int(n), int(t), float(share), float(us)) for n, t, share, us in found["cpu"]],
            gpu=[(int(n), int(t), float(share), float(us)) for n, t, share, us in found["gpu"]],
            copies=[(int(size), float(us)) for size, us in found["copies"]],
            expert_bytes=int(found["expert_bytes"]),
        )


def expert_bytes_of(layer: Layer) -> int:
    """Of one expert's blob."""
    return layout_of(layer.spec, layer.weight_format).bytes


def subject_of(layer: Layer) -> dict[str, Any]:
    """All that the times depend on: machine, threads, kernels, shape, format. Ready for JSON."""
    import moerun
    from moerun import _core

    engine, spec = layer.engine, layer.spec
    stats, cpu = engine._core.stats(), _core.cpu_info()
    pinned = engine.gpu is not None and engine.config.store != "staged" and not engine._core.why_not_pinned
    return {
        "moerun": moerun.__version__,
        "cpu": cpu["model"],
        "cores": cpu["usable_cores"],
        "threads": stats["cpu_threads"],
        "isa": stats["isa"],
        "gpu": engine.gpu,
        "gpu_architecture": engine._core.gpu_architecture,
        "pinned": pinned,
        "hidden": spec.hidden_size,
        "intermediate": spec.intermediate_size,
        "experts_per_token": spec.top_k,
        "activation": spec.activation,
        "bias": spec.bias,
        "format": layer.weight_format,
        "x": layer.x_dtype,
    }
