"""Options of big-little experts that commands share, and what a run is said to have done."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from moerun.big_little.options import MEASURES, BigLittle
from moerun.cli import arguments, text

if TYPE_CHECKING:
    from moerun import Checkpoint
    from moerun.big_little.statistics import Statistics
    from moerun.big_little.thresholds import Formats

AUTO = "auto"


def threshold(value: str) -> float | str:
    """A number in [0, 1], or "auto"."""
    if value == AUTO:
        return AUTO
    try:
        return BigLittle(threshold=float(value)).threshold
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, or auto, got {value!r}") from error


def schedule(value: str) -> int | tuple[int, ...]:
    """A number of experts, or one per layer, separated by commas."""
    counts = tuple(arguments.count(part) for part in value.split(","))
    return counts[0] if len(counts) == 1 else counts


def add_shape(parser: argparse.ArgumentParser) -> None:
    """What a little pass is, and when it is encoded again."""
    parser.add_argument(
        "--little-k",
        type=schedule,
        metavar="N[,N...]",
        help="experts per token in a little pass, or one number per layer (default: half, rounded up)",
    )
    parser.add_argument(
        "--refresh",
        type=arguments.count,
        metavar="R",
        help="encode every R accepted tokens again with all experts; with --lossless: longest draft",
    )
    parser.add_argument("--confidence", choices=MEASURES, default=MEASURES[0], help=f"default: {MEASURES[0]}")


def add_mode(parser: argparse.ArgumentParser) -> None:
    """Everything that `moerun generate` knows of big-little."""
    parser.add_argument(
        "--big-little",
        type=threshold,
        metavar="T",
        help="use few experts for tokens of which they are at least so confident (0 to 1; auto: what "
        "`moerun tune-threshold` has found)",
    )
    parser.add_argument(
        "--lossless",
        action="store_true",
        help="let few experts draft and all verify: the full model's text",
    )
    add_shape(parser)


def options_of(args: argparse.Namespace, checkpoint: Checkpoint) -> BigLittle | None:
    """What the arguments ask for, checked against the checkpoint; None without --big-little.

    Raises
    ------
    ValueError
        An option of big-little without it, one that does not fit the checkpoint, or no threshold is kept.
    """
    from moerun.big_little.thresholds import kept_threshold, threshold_file

    if args.big_little is None:
        given = [name for name in ("lossless", "little_k", "refresh") if getattr(args, name)]
        if given:
            raise ValueError(f"--{given[0].replace('_', '-')} needs --big-little T")
        return None
    options = shape_of(args, checkpoint, lossless=args.lossless)
    if args.big_little == AUTO:
        found = kept_threshold(threshold_file(checkpoint, formats_of(args), options))
    else:
        found = args.big_little
    return BigLittle(found, options.little_k, options.refresh, options.lossless, options.measure)


def formats_of(args: argparse.Namespace) -> Formats:
    """The number formats that the arguments of a command name."""
    from moerun.big_little.thresholds import Formats

    return Formats(args.experts, args.dense, args.dtype)


def shape_of(args: argparse.Namespace, checkpoint: Checkpoint, lossless: bool = False) -> BigLittle:
    """The options but for the threshold, checked against the checkpoint (ValueError)."""
    options = BigLittle(
        little_k=args.little_k, refresh=args.refresh or 0, lossless=lossless, measure=args.confidence
    )
    layers = checkpoint.moe_layers
    options.little_k_of_layers(len(layers), checkpoint.spec(layers[0]).top_k)
    return options


def render(options: BigLittle, statistics: Statistics) -> str:
    """The statistics of a run as text for people."""
    new = max(statistics.new_tokens, 1)
    if options.lossless:
        decided = [
            "drafts",
            f"{statistics.accepted_tokens} of {statistics.drafted_tokens} right "
            f"({statistics.acceptance:.0%})",
        ]
    else:
        accepted = statistics.little_tokens / max(statistics.little_passes, 1)
        decided = [
            "fallbacks",
            f"{statistics.fallbacks} ({statistics.fallbacks / new:.0%}); {accepted:.0%} of the little passes "
            "were accepted",
        ]
    rows: list[list[str]] = [
        ["little tokens", f"{statistics.little_tokens} of {new} ({statistics.little_share:.0%})"],
        decided,
        ["encoded again", text.plural(statistics.refreshed_tokens, "token")],
        [
            "passes",
            f"{statistics.little_passes} little, {statistics.full_passes} with all experts, "
            f"{statistics.batch_passes} of several tokens with all experts",
        ],
        ["experts read", f"{statistics.experts_read} ({statistics.experts_read / new:.1f} per new token)"],
        ["bytes read", text.size(statistics.bytes_read)],
        ["time lost" if (statistics.saved_s or 0) < 0 else "time saved", _saved(statistics)],
    ]
    return text.table([["big-little", f"threshold {options.threshold:g}"], *rows], "ll")


def _saved(statistics: Statistics) -> str:
    saved = statistics.saved_s
    if saved is None:
        return "unknown: no token was run with all experts to compare with"
    usual = statistics.decode_s + saved
    share = saved / usual if usual > 0 else 0.0
    return f"{abs(saved):.2f} s of {usual:.2f} s ({abs(share):.0%}), by this run's passes with all experts"


def as_figures(options: BigLittle, statistics: Statistics) -> dict[str, Any]:
    """For JSON."""
    from moerun.big_little.statistics import as_figures as figures

    return {"threshold": options.threshold, "lossless": options.lossless, **figures(statistics)}
