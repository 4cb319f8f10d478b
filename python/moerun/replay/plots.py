"""Bar charts of replayed times. Needs matplotlib (the extra "plot")."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def bars(rows: list[dict[str, Any]], path: Path) -> None:
    """One group of bars per model and size of cache, one bar per system: milliseconds per token of decode."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    groups = list(dict.fromkeys((row["model"], row["cache_ratio"]) for row in rows))
    systems = list(dict.fromkeys(row["system"] for row in rows))
    models = list(dict.fromkeys(model for model, _ in groups))
    figure, axes = plt.subplots(1, len(models), figsize=(4.2 * len(models), 3.2), squeeze=False)
    for axis, model in zip(axes[0], models, strict=True):
        ratios = [ratio for name, ratio in groups if name == model]
        for i, system in enumerate(systems):
            times = {
                row["cache_ratio"]: row["decode"]["step_ms"]
                for row in rows
                if row["model"] == model and row["system"] == system
            }
            positions = [j + (i + 0.5) / len(systems) * 0.8 - 0.4 for j in range(len(ratios))]
            axis.bar(positions, [times.get(r, 0) for r in ratios], 0.8 / len(systems), label=system)
        axis.set_xticks(range(len(ratios)), [f"{r:.0%}" for r in ratios])
        axis.set_title(model, fontsize=10)
        axis.set_xlabel("experts cached")
    axes[0][0].set_ylabel("ms per token (simulated)")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=min(len(systems), 4), fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.12, 1, 1))
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
