"""Types of command-line arguments that commands share; a wrong value is a usage error (exit code 2)."""

from __future__ import annotations

import argparse

from moerun.memory_size import parse_memory_size


def count(text: str) -> int:
    """A whole number of at least 1."""
    return _whole_number(text, at_least=1)


def seed(text: str) -> int:
    """A whole number of at least 0."""
    return _whole_number(text, at_least=0)


def fraction(text: str) -> float:
    """A number in (0, 1]."""
    value = _number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be more than 0 and at most 1, got {text!r}")
    return value


def share(text: str) -> float:
    """A number in [0, 1]."""
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, got {text!r}")
    return value


def non_negative(text: str) -> float:
    """A number of at least 0."""
    value = _number(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of at least 0, got {text!r}")
    return value


def memory_size(text: str) -> str:
    """An amount of memory, as moerun.EngineConfig.gpu_cache takes it."""
    try:
        parse_memory_size(text, "the size")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """The positional argument CKPT."""
    parser.add_argument(
        "checkpoint",
        metavar="CKPT",
        help="folder with config.json and *.safetensors, or a Hugging Face repository (owner/name)",
    )


def _whole_number(text: str, at_least: int) -> int:
    if not (text.isascii() and text.isdigit() and int(text) >= at_least):
        raise argparse.ArgumentTypeError(f"must be a whole number of at least {at_least}, got {text!r}")
    return int(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from None
