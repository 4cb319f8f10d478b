"""The page docs/results/mobile.md: tables from the figures in bench/results, between the text of notes.py."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.mobile.drafts_replayed import BITS as DRAFT_BITS
from bench.mobile.notes import (
    ABSENT,
    ASSUMED,
    DRAFTS_NOTE,
    EQUALITY_NOTE,
    HEAD,
    LEFT_NOTE,
    LOSSLESS_NOTE,
    MEASURES_NOTE,
    QUALITY_NOTE,
    REPLAY_NOTE,
    SPEED_NOTE,
)
from bench.mobile.plots import TITLES
from bench.mobile.quality import SEEDS, WINDOWS
from bench.mobile.replayed import BASE, BITS, MIDDLE_GB, PAPER_MODELS, SHOWN
from bench.report import QUIET
from bench.table import plural
from moerun.replay.tables import markdown


def render(data: dict[str, Any]) -> str:
    """The page, of the parts that there are."""
    sections = {"quality": _of_quality, "speed": _of_speed, "replay": _of_replay, "drafts": _of_drafts}
    parts = [HEAD, _in_short(data)]
    for part, section in sections.items():
        parts += section(data) if part in data else [ABSENT.format(part=part)]
    parts.append(ASSUMED.format(machine="RTX 4080 16 GB, PCIe 4, DDR4-3200"))
    parts.append(f"## Where the parts were made\n\n{_origins(data['environment'])}\n")
    return "\n".join(part.strip("\n") + "\n" for part in parts)


def _of_quality(data: dict[str, Any]) -> list[str]:
    quality = data["quality"]
    equality = quality["equality"]
    return [
        f"## Quality by threshold (measured, {quality['tokens']} tokens a text)\n\n"
        "![quality](mobile-quality.png)\n",
        *(f"### {TITLES[name]}\n\n{_texts(text, quality)}\n" for name, text in quality["texts"].items()),
        QUALITY_NOTE.format(seeds=SEEDS, windows=WINDOWS),
        f"## Measures of confidence (measured)\n\n{_measures(quality['texts'])}\n",
        MEASURES_NOTE,
        f"## Lossless (measured)\n\n{_lossless(quality)}\n",
        LOSSLESS_NOTE.format(prompts=equality[0]["prompts"], new=equality[0]["tokens"]),
        f"{_equality(equality)}\n",
        EQUALITY_NOTE,
    ]


def _of_speed(data: dict[str, Any]) -> list[str]:
    speed = data["speed"]
    title = "## Speed on the CPU (passes measured, pattern imposed)"
    return [f"{title}\n\n{_environment(data, speed)}\n\n{_speed(speed)}\n", SPEED_NOTE]


def _of_replay(data: dict[str, Any]) -> list[str]:
    replay = data["replay"]
    return [
        "## On a GPU that the experts do not fit (simulated): ms per token\n\n![replay](mobile-replay.png)\n",
        REPLAY_NOTE,
        *(f"### {_stored(bits)}\n\n{_replay(replay, bits)}\n" for bits in _distinct(replay, "bits")),
        f"### By fallback rate: speed over all experts on the same system, {MIDDLE_GB} GB, "
        f"{_stored(BITS[0])}\n\n{_by_pattern(replay)}\n\nIn each cell: {', '.join(PAPER_MODELS)}.\n",
        LEFT_NOTE,
    ]


def _of_drafts(data: dict[str, Any]) -> list[str]:
    title = "## Lossless on such a GPU (simulated): speed over all experts"
    return [f"{title}\n\n{_drafts(data['drafts'])}\n", DRAFTS_NOTE.format(bits=DRAFT_BITS)]


def _origins(environments: dict[str, Any]) -> str:
    rows = []
    for part, found in environments.items():
        machine, commit = found["machine"], found["commit"]
        name = commit["hash"][:10] + (" with changes" if commit["dirty"] else "")
        cpu = f"{machine['cpu']}, {plural(machine['usable_cores'], 'core')}, {machine['kernels']}"
        versions = f"torch {found['versions']['torch']}, transformers {found['versions']['transformers']}"
        rows.append([part, name, cpu, versions])
    return markdown(["part", "commit", "machine", "versions"], rows, (0, 1, 2, 3))


def _distinct(rows: list[dict[str, Any]], key: str) -> list[Any]:
    return list(dict.fromkeys(row[key] for row in rows))


def _stored(bits: float) -> str:
    return f"experts of {bits:g} bits a weight"


def _times(rows: list[dict[str, Any]], **wanted: object) -> dict[tuple[Any, ...], float]:
    """Times by (model, GPU memory) of the rows that have these values."""
    return {
        (row["model"], row["gpu_gb"]): row["token_ms"]
        for row in rows
        if all(row[key] == value for key, value in wanted.items())
    }


def _gains(slow: dict[Any, float], fast: dict[Any, float]) -> list[float]:
    return [slow[key] / fast[key] for key in slow]


def _range(values: list[float]) -> str:
    return f"{min(values):.2f}x to {max(values):.2f}x, mean {np.mean(values):.2f}x"


def _in_short(data: dict[str, Any]) -> str:
    rows = _short_of_replay(data["replay"]) if "replay" in data else []
    if "speed" in data:
        rows += _short_of_speed(data["speed"])
    if "drafts" in data:
        drafts = data["drafts"]
        gains = [gain for system in _distinct(drafts, "system") for gain in _draft_gains(drafts, system)]
        rows.append(["lossless over all experts on the same system (simulated)", "", _range(gains)])
    if "quality" in data:
        rows += _short_of_quality(data["quality"])
    busy = "speed" in data and data["speed"]["waiting"] > QUIET
    note = f"Simulated figures are over all four models and 8 to 16 GB, {_stored(16.0)}."
    note += " Speed was measured on a busy machine: see there." if busy else ""
    return "## In short\n\n" + markdown(["", "paper or goal", "here"], rows) + f"\n\n{note}\n"


def _short_of_replay(replay: list[dict[str, Any]]) -> list[list[str]]:
    fallen = next(row["fallbacks"] for row in replay if row["pattern"] == SHOWN)

    def times(system: str, pattern: str) -> dict[tuple[Any, ...], float]:
        return _times(replay, bits=16.0, system=system, pattern=pattern)

    def gains(slow: str, fast: str) -> str:
        return _range(_gains(times(slow, BASE), times(fast, SHOWN)))

    return [
        [
            f"big-little over on-demand offloading, {fallen:.0%} fallbacks (simulated)",
            "1.60x to 1.72x (paper)",
            gains("on demand", "on demand"),
        ],
        ["big-little with HybriMoE over HybriMoE alone (simulated)", "", gains("HybriMoE", "HybriMoE")],
        ["big-little with ours over ours alone (simulated)", "", gains("ours", "ours")],
        ["big-little with ours over on-demand offloading (simulated)", "", gains("on demand", "ours")],
    ]


def _short_of_speed(speed: dict[str, Any]) -> list[list[str]]:
    over_big = {row["way"]: row["over_big"]["median"] for row in speed["rows"]}
    lossless = max(gain for way, gain in over_big.items() if "lossless" in way)
    where = "on the CPU (measured, imposed)"
    return [
        [f"big-little over all experts, {SHOWN}, {where}", "", f"{over_big[f'big-little, {SHOWN}']:.2f}x"],
        [f"lossless over all experts, the best of four ways to draft, {where}", "", f"{lossless:.2f}x"],
    ]


def _short_of_quality(quality: dict[str, Any]) -> list[list[str]]:
    ahead = [
        row["ahead"]
        for text in quality["texts"].values()
        for row in text["rows"]
        if 0.05 < row["confidence"]["little_share"] < 0.95
    ]
    least, most = (100 * choose(row["mean"] for row in ahead) for choose in (min, max))
    certain = sum(row["low"] > 0 for row in ahead)
    reads = min(row["experts_per_token"] for row in quality["lossless"])
    return [
        [
            "experts that lossless reads per token, the best way to draft (measured)",
            f"{quality['experts_per_token']} are all",
            f"{reads:.1f}",
        ],
        [
            "confidence against chance, agreement at the same share (measured)",
            "clearly ahead",
            f"{least:+.1f} to {most:+.1f} points; the interval is above 0 in {certain} of {len(ahead)} rows",
        ],
    ]


def _texts(text: dict[str, Any], quality: dict[str, Any]) -> str:
    def cells(found: dict[str, float]) -> list[str]:
        return [
            f"{found['little_share']:.0%}",
            f"{found['agreement']:.1%}",
            f"{found['perplexity']:.2f}",
            f"{found['experts_per_token']:.1f}",
        ]

    rows = []
    for row in text["rows"]:
        chance = row["chance"]
        rows.append(
            [
                f"{row['threshold']:g}",
                *cells(row["confidence"]),
                *cells(row["refreshed"]),
                f"{chance['agreement']:.1%}",
                f"{chance['perplexity']:.2f}",
                _ahead(row["ahead"]) if 0 < chance["little_share"] < 1 else "",
            ]
        )
    head = ["threshold", "little", "agreement", "perplexity", "experts"]
    head += [f"refresh: {name}" for name in head[1:]] + ["chance: agreement", "chance: perplexity", "ahead"]
    always = (
        f"All experts: perplexity {text['full_perplexity']:.2f}, {quality['experts_per_token']} experts per "
        "token. Threshold 0 is always little, threshold 1 always big (after a little pass in vain)."
    )
    return f"{always}\n\n{markdown(head, rows)}"


def _measures(texts: dict[str, Any]) -> str:
    rows = [
        [
            TITLES[name],
            row["measure"],
            f"{row['threshold']:.3f}",
            f"{row['little_share']:.0%}",
            f"{row['agreement']:.1%}",
            f"{row['perplexity']:.2f}",
            _ahead(row["ahead"]),
        ]
        for name, text in texts.items()
        for row in text["measures"]
    ]
    head = ["text", "measure", "threshold", "little", "agreement", "perplexity", "ahead"]
    return markdown(head, rows, (0, 1))


def _ahead(found: dict[str, float]) -> str:
    return f"{100 * found['mean']:+.1f} [{100 * found['low']:+.1f} {100 * found['high']:+.1f}]"


def _lossless(quality: dict[str, Any]) -> str:
    rows = [
        [
            row["drafts"],
            f"{row['threshold']:g}",
            f"{row['acceptance']:.0%}",
            f"{row['tokens_per_round']:.2f}",
            f"{row['little_passes_per_token']:.2f}",
            f"{row['shared']:.0%}",
            f"{row['verifying_per_token']:.1f}",
            f"{row['experts_per_token']:.1f}",
        ]
        for row in quality["lossless"]
    ]
    head = ["drafts use", "threshold", "drafts right", "tokens per verification", "little passes per token"]
    table = markdown([*head, "shared", "verification", "experts"], rows)
    return f"With all experts, a token reads {quality['experts_per_token']}.\n\n{table}"


def _equality(rows: list[dict[str, Any]]) -> str:
    shown = [
        [
            row["dtype"],
            f"{row['equal']} of {row['prompts']}",
            f"{max(row['margins']):.4f}" if row["margins"] else "-",
        ]
        for row in rows
    ]
    return markdown(
        ["", f"texts of {rows[0]['tokens']} tokens equal to the full model's", "largest margin"], shown
    )


def _environment(data: dict[str, Any], speed: dict[str, Any]) -> str:
    found = data["environment"]["speed"]
    machine = found["machine"]
    return (
        f"{machine['cpu']}, {plural(speed['threads'], 'thread')}, kernels {machine['kernels']}, commit "
        f"{found['commit']['hash'][:10]}. A random checkpoint of {speed['layers']} layers at "
        f"Qwen3-30B-A3B's shapes in bf16, with {speed['words']} words so that the head weighs as much beside "
        f"{speed['layers']} layers as it does beside 48. Medians over {speed['rounds']} rounds of "
        f"{speed['tokens']} tokens in which all ways take turns; in brackets the 10th to 90th percentiles. "
        f"Threads waited {speed['waiting']:.0%} of the time for a core that others had{_disturbed(speed)}."
    )


def _disturbed(speed: dict[str, Any]) -> str:
    if speed["waiting"] <= QUIET:
        return ""
    return (
        ": **others were busy on this machine, so these figures say little**; measure them again when it is "
        "quiet, with `python -m bench.mobile --only speed`"
    )


def _speed(speed: dict[str, Any]) -> str:
    rows = [
        [
            row["way"],
            _spread(row["tokens_per_s"], ".1f"),
            _spread(row["over_big"], ".2f"),
            f"{row['experts_per_token']:.1f}",
        ]
        for row in speed["rows"]
    ]
    return markdown(["", "tokens/s", "over big", "experts per token"], rows)


def _spread(found: dict[str, float], form: str) -> str:
    median, low, high = (format(found[key], form) for key in ("median", "p10", "p90"))
    return f"{median} [{low} {high}]"


def _drafts(rows: list[dict[str, Any]]) -> str:
    systems, patterns = _distinct(rows, "system"), [p for p in _distinct(rows, "pattern") if p != BASE]
    gains = {
        (system, pattern): dict(zip(_times(rows, system=system, pattern=BASE), values, strict=True))
        for system in systems
        for pattern in patterns
        for values in [_draft_gains(rows, system, pattern)]
    }
    table = [
        [f"{model}, {size} GB", *(f"{found[model, size]:.2f}" for found in gains.values())]
        for model, size in _times(rows, system=systems[0], pattern=BASE)
    ]
    return markdown(["", *(f"{system}: {pattern}" for system, pattern in gains)], table)


def _draft_gains(rows: list[dict[str, Any]], system: str, pattern: str | None = None) -> list[float]:
    """Of one pattern of drafts, or of all of them."""
    patterns = [p for p in _distinct(rows, "pattern") if p != BASE] if pattern is None else [pattern]
    plain = _times(rows, system=system, pattern=BASE)
    return [gain for p in patterns for gain in _gains(plain, _times(rows, system=system, pattern=p))]


def _replay(rows: list[dict[str, Any]], bits: float) -> str:
    rows = [row for row in rows if row["bits"] == bits]
    systems = _distinct(rows, "system")
    found = {(row["model"], row["gpu_gb"], row["system"], row["pattern"]): row["token_ms"] for row in rows}
    table = []
    for model in _distinct(rows, "model"):
        for size in _distinct(rows, "gpu_gb"):
            cached = next(r["cached"] for r in rows if (r["model"], r["gpu_gb"]) == (model, size))
            cells = [f"{model}, {size} GB", f"{cached:.0%}"]
            for system in systems:
                plain, little = (found[model, size, system, p] for p in (BASE, SHOWN))
                cells += [f"{plain:.1f}", f"{little:.1f} ({plain / little:.2f}x)"]
            first, last = found[model, size, systems[0], BASE], found[model, size, systems[-1], SHOWN]
            table.append([*cells, f"{first / last:.2f}x"])
    head = ["", "cached"]
    for system in systems:
        head += [system, f"{system} + big-little"]
    return markdown([*head, "all together"], table)


def _by_pattern(rows: list[dict[str, Any]]) -> str:
    rows = [row for row in rows if (row["bits"], row["gpu_gb"]) == (BITS[0], MIDDLE_GB)]
    table = []
    for pattern in _distinct(rows, "pattern"):
        these = [row for row in rows if row["pattern"] == pattern]
        cells = ["demo model at 0.7" if pattern == "0.7" else pattern, f"{these[0]['fallbacks']:.0%}"]
        for system in _distinct(rows, "system"):
            gains = _gains(
                _times(rows, system=system, pattern=BASE), _times(rows, system=system, pattern=pattern)
            )
            cells.append(" ".join(f"{gain:.2f}" for gain in gains))
        if pattern != BASE:
            table.append(cells)
    return markdown(["pattern", "fallbacks", *_distinct(rows, "system")], table)
