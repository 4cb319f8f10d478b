"""What stands around the experts of a model, on the engine's threads: matrices, attention, routers, norms."""

from moerun.dense.attention import Attention, HeadNorm
from moerun.dense.cached_attention import CachedAttention
from moerun.dense.decoder import Caches, Decoder, DecoderLayer, TokenRun
from moerun.dense.latent_attention import LatentAttention, LatentProjections
from moerun.dense.linear import Linear
from moerun.dense.norm import RmsNorm
from moerun.dense.prompt_attention import prompt_attention
from moerun.dense.router import Router

__all__ = [
    "Attention",
    "CachedAttention",
    "Caches",
    "Decoder",
    "DecoderLayer",
    "HeadNorm",
    "LatentAttention",
    "LatentProjections",
    "Linear",
    "RmsNorm",
    "Router",
    "TokenRun",
    "prompt_attention",
]
