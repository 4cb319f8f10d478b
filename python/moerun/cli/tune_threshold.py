"""``moerun tune-threshold``: finds the threshold of big-little experts on a user's own text, and keeps it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from moerun.cli import arguments, big_little
from moerun.layer_spec import WEIGHT_FORMATS

PROMPT, STEPS = 32, 96  # tokens of a window: read as a prompt, and compared

EXAMPLES = """\
examples:
  moerun tune-threshold ./OLMoE-1B-7B --text notes.txt --max-disagreement 0.01
  moerun generate ./OLMoE-1B-7B "Once upon a time" --big-little auto --stats
"""


def add_parser(subparsers: Any, common: argparse.ArgumentParser) -> None:
    """Add ``moerun tune-threshold`` to the command line."""
    parser = subparsers.add_parser(
        "tune-threshold",
        parents=[common],
        help="find a threshold for generate --big-little auto",
        description="Finds the smallest threshold with which few enough next tokens of a text differ from "
        "the full\nmodel's, and keeps it for `moerun generate --big-little auto`.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    arguments.add_checkpoint(parser)
    parser.add_argument("--text", type=Path, required=True, metavar="FILE", help="of the kind you generate")
    parser.add_argument(
        "--max-disagreement",
        type=arguments.share,
        default=0.01,
        metavar="D",
        help="share of next tokens that may differ from the full model's (default: 0.01)",
    )
    parser.add_argument(
        "--tokens",
        type=arguments.count,
        default=2048,
        metavar="N",
        help="of the text to read (default: 2048)",
    )
    big_little.add_shape(parser)
    parser.add_argument("--threads", type=arguments.count, metavar="N", help="default: all usable cores")
    parser.add_argument(
        "--dtype", choices=["auto", "fp32", "bf16", "fp16"], default="auto", help="as in generate"
    )
    parser.add_argument("--experts", choices=WEIGHT_FORMATS, metavar="FORMAT", help="as in generate")
    parser.add_argument("--dense", choices=WEIGHT_FORMATS, metavar="FORMAT", help="as in generate")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Load the checkpoint, read the text with several thresholds, keep the smallest that will do."""
    from moerun import Checkpoint
    from moerun.big_little.thresholds import keep_threshold, threshold_file
    from moerun.cli.generate import default_threads, load_model, load_tokenizer
    from moerun.hf.folder import checkpoint_folder

    try:
        content = args.text.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{args.text} is not UTF-8 text: {error}") from error
    folder = checkpoint_folder(args.checkpoint)
    checkpoint = Checkpoint(folder)
    options = big_little.shape_of(args, checkpoint)
    model = load_model(folder, args.dtype, args.threads or default_threads(), args.experts, args.dense)
    tokens = load_tokenizer(folder)(content, verbose=False).input_ids

    from tqdm import tqdm

    from moerun.big_little.reading import Text, windows_of
    from moerun.big_little.tune import RUNS, tune_threshold

    most = max(args.tokens // (PROMPT + STEPS + 1), 1)
    text = Text(model, windows_of(tokens, PROMPT, STEPS, most), PROMPT)
    with tqdm(total=RUNS * text.steps, desc="reading the text", unit="token", disable=None) as bar:
        tuned = tune_threshold(text, options, args.max_disagreement, bar.update)

    file = threshold_file(checkpoint, big_little.formats_of(args), options)
    if file is None:
        print("moerun: note: MOERUN_CACHE is off, so the threshold is not kept", file=sys.stderr)
    else:
        keep_threshold(file, tuned, args.max_disagreement)
    if args.json:
        print(json.dumps({**tuned._asdict(), "kept_in": None if file is None else str(file)}, indent=2))
        return 0
    full = sum(checkpoint.spec(layer).top_k for layer in checkpoint.moe_layers)
    print(
        f"threshold {tuned.threshold:g}: {tuned.little_share:.0%} of {text.choices.numel()} tokens are "
        f"little, {tuned.disagreement:.2%} of the next tokens differ, {tuned.experts_per_token:.1f} experts "
        f"are read per token instead of {full}"
    )
    return 0
