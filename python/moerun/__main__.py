"""``python -m moerun``: the same as the ``moerun`` command."""

import sys

from moerun.cli import main

sys.exit(main())
