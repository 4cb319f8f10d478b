"""What `make demo` runs: a small Mixture-of-Experts model of Python source text continues a piece of Python.

It is the command line on the trained checkpoint beside this file: it streams the text, then prints the speed
and which experts did the work.
"""

from __future__ import annotations

import sys
from pathlib import Path

from moerun.cli import main

CHECKPOINT = str(Path(__file__).parent / "pycode-moe")
PROMPT = """\
class Node:
    def __init__(self, value, parent=None):
        self.value = value
        self.parent = parent
        self.children = []

    def """
SAMPLING = ["--temperature", "0.8", "--top-p", "0.9", "--seed", "2"]


def demo(new_tokens: int = 120) -> int:
    """Runs `moerun generate` and returns its exit code."""
    length = ["--max-new-tokens", str(new_tokens)]
    return main(["generate", CHECKPOINT, PROMPT, "--echo", "--stats", *SAMPLING, *length])


if __name__ == "__main__":
    sys.exit(demo())
