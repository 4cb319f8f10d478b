"""What running an expert costs on this machine: timed once per shape and format, and kept on disk.

The cost model is HybriMoE's (arXiv 2504.05897, section IV-A; src/policy/cost_model.h). An engine with a GPU
calibrates when a layer of a new kind is added (EngineConfig.calibrate); `moerun doctor --calibrate` shows
what comes out, on a machine without a GPU the CPU's part of it.
"""

from moerun.calibration.calibrator import Calibrator, calibrate
from moerun.calibration.points import Points

__all__ = ["Calibrator", "Points", "calibrate"]
