"""``moerun trace``: writes down which experts a model chooses for a text, for `moerun replay`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from moerun.cli import arguments


def add_parser(subparsers: Any, common: argparse.ArgumentParser) -> None:
    """Add ``moerun trace`` to the command line."""
    parser = subparsers.add_parser(
        "trace",
        parents=[common],
        help="record a model's routing of a text",
        description="Lets a model read a text and writes down, for every token and layer, the router's "
        "scores, the experts chosen, and what the next layers' routers would have predicted.",
    )
    arguments.add_checkpoint(parser)
    parser.add_argument("--text", type=Path, required=True, help="file with the text to read")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the trace to write (.npz)")
    parser.add_argument("--prompt", type=arguments.count, default=32, help="tokens of prefill (default 32)")
    parser.add_argument("--tokens", type=arguments.count, default=128, help="tokens altogether (default 128)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Record and save the trace."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from moerun.hf.folder import checkpoint_folder
    from moerun.replay.record import record

    folder = checkpoint_folder(args.checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    token_ids = tokenizer(args.text.read_text(), truncation=True, max_length=args.tokens)["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    trace = record(model, token_ids, min(args.prompt, len(token_ids)), Path(folder).name)
    trace.save(args.output)
    print(
        f"{args.output}: {trace.num_tokens} tokens, {trace.num_layers} layers of {trace.num_experts} "
        f"experts, top-{trace.top_k}, {args.output.stat().st_size / 1024:.0f} KiB"
    )
    return 0
