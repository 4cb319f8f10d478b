"""Routing traces played against hardware profiles on a virtual clock, with the engine's own policies.

- `trace`: the file format; `record` writes it from a real model, `synthetic` makes it up, `fit` fits the
  latter
- `models`, `profile`: what is run, and on which machine
- `systems`: who decides what; `cache`, `pcie`, `simulator`, `counters`: what then happens
- `experiments`, `report`, `page`: the figures and tables of docs/results/hybrimoe.md
"""

from moerun.replay.simulator import Replay
from moerun.replay.trace import Trace

__all__ = ["Replay", "Trace"]
