"""The text of docs/results/mobile.md, paragraph by paragraph; page.py fills figures in."""

from __future__ import annotations

HEAD = """\
# MoBiLE: big-little experts

Made by `python -m bench.mobile`, of the figures in `bench/results/mobile-*.json`; `--only PART ...` makes
some of them anew, a bare `--only` just the page. MoBiLE is arXiv 2510.12357: a token first goes through all
layers with half of its experts; if the next token is sure enough, that is the result, else the token is run
again with all of them. What stands here is of three kinds:

- **measured**: quality, with the trained demo model (examples/pycode-moe, 6 layers, 32 experts, top-4, 2 in
  a little pass) in fp32; and speed, of passes on this machine's CPU at the expert sizes of Qwen3-30B-A3B;
- **imposed**: that large checkpoint is random, so which of its tokens are sure is taken from the demo model;
- **simulated**: the part on GPUs plays made-up routing against a hardware profile on a virtual clock, with
  the same imposed pattern. Nothing here was measured on the GPU named.
"""

ABSENT = "*Not made yet: `python -m bench.mobile --only {part}`.*"

QUALITY_NOTE = """
*little*: share of tokens that half of the experts decided; the others fell back. *agreement*: the likeliest
next token is the full model's on the same text. *perplexity*: of the text under the distributions that
decided. *experts*: read per token by one sequence, both passes of a fallback counted. *refresh*: every 8
accepted tokens are encoded again with all experts; the share of little tokens is lower as the token at which
that happens is decided by all of them. It raises agreement and perplexity, but at 8 tokens of a top-4 of 32
it reads about as many experts as it saves: with this model it pays in quality, not in reads. *chance*: as
many little tokens as confidence has accepted, to the token, drawn at random ({seeds} draws). *ahead*:
agreement by confidence less that by chance, in points, with 95 % of a bootstrap over the {windows} windows of
a text, which lie in different files.
"""

MEASURES_NOTE = """
The three measures of confidence at thresholds that accept about the same shares; *ahead* of chance as above.
Margin is at par with the largest probability, or ahead of it where half or more of the tokens of the
project's files are little; entropy is behind both. The paper's measure stays the default. All are ahead of
chance in agreement; in perplexity the largest probability is ahead only up to about half of the tokens.
"""

LOSSLESS_NOTE = """
Drafts of at most 8 tokens, {prompts} prompts of 32 tokens, {new} new ones, one sequence at a time. *experts*
counts those of the drafts and of their verification, which reads an expert that several of its tokens share
once; *verification* is its part. *shared*: of what its tokens would read one by one, what it does not read.

Where lossless can win: a draft and its verification run everything outside of the experts as often as plain
decoding (a pass a token, but for drafts that are wrong), so all is decided by the experts. A verification of
n tokens saves their share s of n times top_k, and n - 1 drafts cost c of it each, c being a draft's part of
the experts: with every draft right it wins only if s > c (n - 1) / n, and with free drafts it wins
1 / (1 - s) at most. With half of the experts s would have to approach a half. A quarter is enough to draft
most tokens rightly and costs half as much: there lossless reads less than plain decoding, by a few per cent.
So it is for models whose neighbouring tokens share experts, and for cheap drafts (`little_k=1`).
"""

DRAFTS_NOTE = """
Speed over all experts on the same system, experts of {bits:g} bits: below 1 is slower. The drafts fare as the
demo model's; the made-up routing shares less between neighbouring tokens than the demo model does, so less is
saved. A verification knows its routing from the drafts and prefetches by it, and finds what they have copied
as long as the cache could keep it.
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
verification of a draft saves little; a trained model overlaps more (see *shared* above). A token with all
experts alone goes through the layers in one call of the core; little passes and verifications are called part
by part, as what their routers choose is changed or counted.
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
- Drafts that are wrong are no tokens of a trace: the tokens that the trace has there stand in for them.
- The head, run once more per fallback, is not in the replay; it is in the measurement of speed.
"""
