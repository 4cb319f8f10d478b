"""The plots of docs/results/mobile.md. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TITLES = {"project": "project's files", "own": "the model's own text"}
LINES = {"confidence": "by confidence", "refreshed": "with refresh", "chance": "by chance"}


def quality(texts: dict[str, Any], path: Path) -> None:
    """Agreement and perplexity over the share of little tokens, one line per way to choose them."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import PercentFormatter

    figure, axes = plt.subplots(1, 3, figsize=(12.6, 3.4))
    for axis, text in zip(axes, TITLES, strict=False):
        rows = texts[text]["rows"]
        for key, label in LINES.items():
            points = sorted((row[key]["little_share"], row[key]["agreement"]) for row in rows)
            axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label)
        shares = [row["confidence"]["little_share"] for row in rows]
        low, high = (
            [min(row["chance"]["agreement"] + row["ahead"][end], 1.0) for row in rows]
            for end in ("low", "high")
        )
        axis.fill_between(shares, low, high, color="C0", alpha=0.15, linewidth=0, label="95 %, over chance")
        axis.set_title(f"{TITLES[text]}: agreement", fontsize=10)
        axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    rows = texts["project"]["rows"]
    for key, label in LINES.items():
        points = sorted((row[key]["little_share"], row[key]["perplexity"]) for row in rows)
        axes[2].plot(*zip(*points, strict=True), marker="o", markersize=3, label=label)
    axes[2].axhline(texts["project"]["full_perplexity"], color="grey", linewidth=0.8, label="all experts")
    axes[2].set_title("project's files: perplexity", fontsize=10)
    axes[0].set_ylabel("next tokens like the full model's")
    for axis in axes:
        axis.set_xlabel("share of little tokens")
        axis.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axis.legend(fontsize=8, frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def replayed(rows: list[dict[str, Any]], pattern: str, path: Path) -> None:
    """Milliseconds per token, simulated: per model and GPU memory, each system without and with it."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row in rows if row["bits"] == 16.0]
    models = list(dict.fromkeys(row["model"] for row in rows))
    systems = list(dict.fromkeys(row["system"] for row in rows))
    sizes = list(dict.fromkeys(row["gpu_gb"] for row in rows))
    figure, axes = plt.subplots(1, len(models), figsize=(3.3 * len(models), 3.4), squeeze=False)
    for axis, model in zip(axes[0], models, strict=True):
        for i, system in enumerate(systems):
            for j, shown in enumerate(("all experts", pattern)):
                times = [
                    row["token_ms"]
                    for row in rows
                    if (row["model"], row["system"], row["pattern"]) == (model, system, shown)
                ]
                width = 0.8 / (2 * len(systems))
                places = [k - 0.4 + (2 * i + j + 0.5) * width for k in range(len(sizes))]
                label = system if j == 0 else f"{system}, big-little"
                axis.bar(places, times, width, color=f"C{i}", alpha=1.0 if j else 0.45, label=label)
        axis.set_xticks(range(len(sizes)), [f"{size} GB" for size in sizes])
        axis.set_title(model, fontsize=10)
    axes[0][0].set_ylabel("ms per token (simulated)")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=3, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.14, 1, 1))
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
