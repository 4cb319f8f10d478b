"""The page docs/results/mobile.md: its text, and its tables from the figures in mobile.json."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.mobile.plots import TITLES
from bench.mobile.replayed import BASE, BITS, MIDDLE_GB, PAPER_MODELS, SHOWN
from bench.report import QUIET
from bench.table import plural
from moerun.replay.tables import markdown

HEAD = """\
# MoBiLE: big-little experts

Made by `python -m bench.mobile`; the figures are in `mobile.json`. MoBiLE is arXiv 2510.12357: a token first
goes through all layers with half of its experts; if the next token is sure enough, that is the result, else
the token is run again with all of them. What stands here is of three kinds:

- **measured**: quality, with the trained demo model (examples/pycode-moe, 6 layers, 32 experts, top-4, 2 in
  a little pass) in fp32; and speed, of passes on this machine's CPU at the expert sizes of Qwen3-30B-A3B;
- **imposed**: that large checkpoint is random, so which of its tokens are sure is taken from the demo model;
- **simulated**: the part on GPUs plays made-up routing against a hardware profile on a virtual clock, with
  the same imposed pattern. Nothing here was measured on the GPU named.
"""

QUALITY_NOTE = """
*little*: share of tokens that half of the experts decided; the others fell back. *agreement*: the likeliest
next token is the full model's on the same text. *perplexity*: of the text under the distributions that
decided. *experts*: read per token by one sequence, both passes of a fallback counted. *refresh*: every 8
accepted tokens are encoded again with all experts; the share of little tokens is lower as the token at which
that happens is decided by all of them. It raises agreement and perplexity, but at 8 tokens of a top-4 of 32
it reads about as many experts as it saves: with this model it pays in quality, not in reads. *chance*: the
same share of little tokens, drawn at random.
"""

MEASURES_NOTE = """
The three measures of confidence at thresholds that accept about the same shares. Margin is at par with the
largest probability or a little ahead, entropy behind both; the paper's measure stays the default.
"""

LOSSLESS_NOTE = """
Drafts of at most 8 tokens, 20 prompts of 32 tokens, 64 new ones, one sequence at a time. *experts* counts
those of the drafts and of their verification, which reads an expert that several of its tokens share once.
Drafts are nearly always right, yet the verification reads all experts of its tokens again: lossless reads
no fewer experts than plain decoding, and can only gain where a pass costs much beside them.
"""

EQUALITY_NOTE = """
In fp32 the text is the full model's unless two logits are closer than the rounding of passes of one and of
several tokens; the tests hold equality over hundreds of prompts, all families. In bf16 such calls are less
rare, and each way of batching breaks them differently, as it does without big-little. *margin*: distance of
the two best logits, relative to the best, where the texts part (bf16 resolves 0.004 to 0.008).
"""

SPEED_NOTE = """
On the CPU a step also goes to attention, its projections and the head, which a fallback runs twice and a
draft runs in vain when it is wrong. Experts of several tokens hardly overlap in a random model, so the
verification of a draft saves little; a trained model overlaps more.
"""

REPLAY_NOTE = """
*on demand* copies every missing expert before the GPU runs it (LRU cache, no prediction), which is what the
paper compares with. *HybriMoE* and *ours* run experts on the CPU as well and prefetch. With big-little, each
of them runs the little passes and the fallbacks; a fallback knows its routing and prefetches by it. The GPU
holds the dense layers, 2 GB of other things (assumed), and as many experts as then fit. Patterns are named
after the share of little passes below their threshold when all are accepted; once some fall back, and in the
stretch that is replayed, it is more: the last table has what it was. The others show the pattern "15% fall
back", in which a quarter does.
"""

LEFT_NOTE = """
What is left: big-little saves copies, so it saves most where every miss is copied. With the CPU running
misses and a prefetcher hiding copies, each pass has less to save, and a fallback, which is a second pass,
costs as much as before; with all experts in the GPU's memory only its reads are halved. The two papers'
gains do not multiply. At the demo model's own pattern, where half of the tokens fall back, big-little gains
little on demand and loses on the others.
"""

ASSUMED = """
## Assumed, and not modelled

- The machine: {machine}; figures and sources are in
  `python/moerun/replay/profiles`. 2 GB of GPU memory for context, keys and values, head and working space.
- Routing of the four models is made up (`replay/synthetic.py`); only DeepSeek-V2-Lite's is fitted to a
  published hit rate, the others take Qwen2's. Little passes and fallbacks are given the same routing, though
  in a model deeper layers may choose a little differently once all experts ran.
- Which tokens are sure is the demo model's pattern at thresholds of its own. Real models of this size are
  surer than a demo; how much quality that costs them is not shown here.
- The paper's fallback rate is not published. If copies decide, a fallback rate f costs 0.5 + 0.5 f of the
  copies, and its 1.60x to 1.72x imply 16 to 25 %; 8 to 25 % are shown.
- The head, run once more per fallback, is not in the replay; it is in the measurement of speed.
"""


def render(data: dict[str, Any]) -> str:
    """The page."""
    quality, speed, replay = data["quality"], data["speed"], data["replay"]
    parts = [
        HEAD,
        _in_short(data),
        f"## Quality by threshold (measured, {quality['tokens']} tokens a text)\n\n"
        "![quality](mobile-quality.png)\n",
        *(f"### {TITLES[name]}\n\n{_texts(text, quality)}\n" for name, text in quality["texts"].items()),
        QUALITY_NOTE,
        f"## Measures of confidence (measured)\n\n{_measures(quality['texts'])}\n",
        MEASURES_NOTE,
        f"## Lossless (measured)\n\n{_lossless(quality)}\n",
        LOSSLESS_NOTE,
        f"{_equality(quality['equality'])}\n",
        EQUALITY_NOTE,
        f"## Speed on the CPU (passes measured, pattern imposed)\n\n{_environment(data, speed)}\n\n"
        f"{_speed(speed)}\n",
        SPEED_NOTE,
        "## On a GPU that the experts do not fit (simulated): ms per token\n\n![replay](mobile-replay.png)\n",
        REPLAY_NOTE,
        *(f"### {_stored(bits)}\n\n{_replay(replay, bits)}\n" for bits in _distinct(replay, "bits")),
        f"### By fallback rate: speed over all experts on the same system, {MIDDLE_GB} GB, "
        f"{_stored(BITS[0])}\n\n{_by_pattern(replay)}\n\nIn each cell: {', '.join(PAPER_MODELS)}.\n",
        LEFT_NOTE,
        ASSUMED.format(machine="RTX 4080 16 GB, PCIe 4, DDR4-3200"),
    ]
    return "\n".join(part.strip("\n") + "\n" for part in parts)


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
    replay = data["replay"]
    wide = {"bits": 16.0}
    fallen = next(row["fallbacks"] for row in replay if row["pattern"] == SHOWN)
    plain, with_little = {**wide, "pattern": BASE}, {**wide, "pattern": SHOWN}
    on_demand = _times(replay, **plain, system="on demand")
    hybrid = _times(replay, **plain, system="HybriMoE")
    ours = _times(replay, **plain, system="ours")
    speed = {row["way"]: row for row in data["speed"]["rows"]}
    beats = [
        row["confidence"]["agreement"] - row["chance"]["agreement"]
        for text in data["quality"]["texts"].values()
        for row in text["rows"]
        if 0.05 < row["confidence"]["little_share"] < 0.95
    ]
    rows = [
        [
            f"big-little over on-demand offloading, {fallen:.0%} fallbacks (simulated)",
            "1.60x to 1.72x (paper)",
            _range(_gains(on_demand, _times(replay, **with_little, system="on demand"))),
        ],
        [
            "big-little with HybriMoE over HybriMoE alone (simulated)",
            "",
            _range(_gains(hybrid, _times(replay, **with_little, system="HybriMoE"))),
        ],
        [
            "big-little with ours over ours alone (simulated)",
            "",
            _range(_gains(ours, _times(replay, **with_little, system="ours"))),
        ],
        [
            "big-little with ours over on-demand offloading (simulated)",
            "",
            _range(_gains(on_demand, _times(replay, **with_little, system="ours"))),
        ],
        [
            f"big-little over all experts on the CPU, {SHOWN} (measured, imposed)",
            "",
            f"{speed[f'big-little, {SHOWN}']['over_big']['median']:.2f}x",
        ],
        [
            "lossless over all experts on the CPU, the better of two thresholds (measured, imposed)",
            "",
            f"{max(s['over_big']['median'] for way, s in speed.items() if 'lossless' in way):.2f}x",
        ],
        [
            "confidence against chance, agreement at the same share (measured)",
            "clearly ahead",
            f"{min(beats):+.1%} to {max(beats):+.1%} of the tokens",
        ],
    ]
    busy = data["speed"]["waiting"] > QUIET
    speed_note = " Speed was measured on a busy machine: see there." if busy else ""
    note = f"The replay's figures are over all four models and 8 to 16 GB, {_stored(16.0)}.{speed_note}"
    return "## In short\n\n" + markdown(["", "paper or goal", "here"], rows) + f"\n\n{note}\n"


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
            ]
        )
    head = ["threshold", "little", "agreement", "perplexity", "experts"]
    head += [f"refresh: {name}" for name in head[1:]] + ["chance: agreement", "chance: perplexity"]
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
        ]
        for name, text in texts.items()
        for row in text["measures"]
    ]
    return markdown(["text", "measure", "threshold", "little", "agreement", "perplexity"], rows, (0, 1))


def _lossless(quality: dict[str, Any]) -> str:
    rows = [
        [
            f"{row['threshold']:g}",
            f"{row['acceptance']:.0%}",
            f"{row['tokens_per_round']:.2f}",
            f"{row['little_passes_per_token']:.2f}",
            f"{row['experts_per_token']:.1f}",
        ]
        for row in quality["lossless"]
    ]
    head = ["threshold", "drafts right", "tokens per verification", "little passes per token", "experts"]
    return f"With all experts, a token reads {quality['experts_per_token']}.\n\n{markdown(head, rows)}"


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
            f"{row['tokens_per_s']:.1f}",
            f"{row['over_big']['median']:.2f}x [{row['over_big']['p10']:.2f} {row['over_big']['p90']:.2f}]",
            f"{row['experts_per_token']:.1f}",
        ]
        for row in speed["rows"]
    ]
    return markdown(["", "tokens/s", "over big", "experts per token"], rows)


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
