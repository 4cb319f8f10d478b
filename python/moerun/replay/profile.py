"""Hardware profiles: a few measured or published figures of a machine, and what work costs on it.

A profile is a JSON file in which each figure stands beside its source; the ones that ship are in profiles/.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path

from moerun.policy import CostModel
from moerun.replay.models import ModelShape

PROFILES = Path(__file__).parent / "profiles"


@dataclass(frozen=True)
class Profile:
    """One machine. Rates in GB/s (10^9 bytes) and TFLOP/s, times in microseconds.

    ``bits`` is the storage of a weight, scales included. ``cpu_gbps`` and ``gpu_gbps`` are what expert
    kernels reach when they read weights (decode), ``cpu_tflops`` and ``gpu_tflops`` when they compute
    (prefill).
    ``layer_us`` is what a layer costs beyond its weights: launches, attention over a short context, the
    router.
    """

    name: str
    bits: float
    cpu_gbps: float
    cpu_tflops: float
    cpu_first_us: float
    gpu_gbps: float
    gpu_tflops: float
    gpu_launch_us: float
    pcie_gbps: float
    copy_fixed_us: float
    layer_us: float

    def expert_bytes(self, model: ModelShape) -> float:
        return model.expert_params * self.bits / 8

    def cost(self, model: ModelShape) -> CostModel:
        """What the planner is told about one expert of the model."""
        size = self.expert_bytes(model)
        flops = 2 * model.expert_params
        return CostModel(
            cpu_first_us=self.cpu_first_us,
            cpu_expert_us=size / self.cpu_gbps / 1e3,
            cpu_token_us=flops / self.cpu_tflops / 1e6,
            gpu_expert_us=self.gpu_launch_us + size / self.gpu_gbps / 1e3,
            gpu_token_us=flops / self.gpu_tflops / 1e6,
            copy_us=self.copy_fixed_us + size / self.pcie_gbps / 1e3,
        )

    def _dense_us(self, params: int, tokens: int, gbps: float, tflops: float) -> float:
        return max(params * self.bits / 8 / gbps / 1e3, 2 * params * tokens / tflops / 1e6)

    def shared_gpu_us(self, model: ModelShape, tokens: int) -> float:
        """The shared experts of one layer on the GPU."""
        if model.shared_params == 0:
            return 0.0
        return self.gpu_launch_us + self._dense_us(
            model.shared_params, tokens, self.gpu_gbps, self.gpu_tflops
        )

    def attention_us(self, model: ModelShape, tokens: int) -> float:
        """Everything of one layer before its experts, on the GPU."""
        return self.layer_us + self._dense_us(model.attention_params, tokens, self.gpu_gbps, self.gpu_tflops)

    def cpu_layer_us(self, model: ModelShape, tokens: int) -> float:
        """Attention and shared experts of one layer where llama.cpp leaves the whole layer on the CPU."""
        params = model.attention_params + model.shared_params
        return self._dense_us(params, tokens, self.cpu_gbps, self.cpu_tflops)


def profile_names() -> list[str]:
    """The profiles that ship with the package."""
    return sorted(path.stem for path in PROFILES.glob("*.json"))


def load_profile(name_or_path: str | Path) -> Profile:
    """A profile by name, or from a file of the same format.

    Raises
    ------
    FileNotFoundError
        Neither a known name nor a file.
    ValueError
        A figure is missing, unknown, without a source, or not positive.
    """
    path = Path(name_or_path)
    if not path.suffix:
        path = PROFILES / f"{name_or_path}.json"
    if not path.is_file():
        known = ", ".join(profile_names())
        raise FileNotFoundError(
            f"no hardware profile {str(name_or_path)!r}; give a JSON file or one of {known}"
        )
    data = json.loads(path.read_text())
    figures = data.get("figures", {})
    names = {f.name for f in fields(Profile)} - {"name"}
    if set(figures) != names:
        missing, unknown = sorted(names - set(figures)), sorted(set(figures) - names)
        raise ValueError(f"{path.name}: figures missing: {missing}, unknown: {unknown}")
    values: dict[str, float] = {}
    for name, entry in figures.items():
        if not entry.get("source"):
            raise ValueError(f"{path.name}: {name} has no source; say where the figure comes from")
        values[name] = float(entry["value"])
        if values[name] < 0 or (values[name] == 0 and not name.endswith("_us")):
            raise ValueError(f"{path.name}: {name} is {values[name]}; rates are positive, times not negative")
    return Profile(name=str(data.get("name", path.stem)), **values)
