"""How the command line ends: exit codes, and one line on stderr for what a user can put right.

Exit codes: 0 done, 1 failed, 2 wrong usage (argparse), 130 interrupted, 141 the reader of stdout went away.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable

from moerun.errors import MoerunError

FAILED = 1
INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
PIPE_CLOSED = 141  # 128 + SIGPIPE

# What bad input, a missing package or a full machine raises. Anything else is a mistake of ours and keeps its
# traceback.
USER_ERRORS = (MoerunError, ValueError, RuntimeError, OSError, ImportError, MemoryError)


def run_guarded(run: Callable[[], int], debug: bool) -> int:
    """Run a command and turn the ways in which it can end into exit codes."""
    try:
        code = run()
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        sys.stderr.write("\nmoerun: interrupted\n")
        return INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout once more at exit; let that go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except USER_ERRORS as error:
        if debug:
            traceback.print_exc()
        else:
            print(f"moerun: error: {one_line(error)}", file=sys.stderr)
        return FAILED


def one_line(error: BaseException) -> str:
    """The message of an exception without line breaks, or its type if it has none."""
    return " ".join(str(error).split()) or type(error).__name__
