"""Big-little experts (MoBiLE, arXiv 2510.12357): where half of a token's experts are sure, no others run.

- `options`: what a user chooses; `setup`: fits it to a model
- `selection`: which experts a pass uses; `passes`, `cache`: passes that can be taken back
- `decoder`: a token a step, with fallback and refresh; `speculator`: the lossless mode
- `confidence`, `sampling`, `sequences`, `draft_length`, `prefetch`, `statistics`: their parts
- `generate`: behind transformers' generate(); `tune`, `thresholds`: finds a threshold and keeps it
"""

from moerun.big_little.options import BigLittle

__all__ = ["BigLittle"]
