"""Letters of dimensions, and the array types that packages share.

B documents (batch), N chunks, L tokens per chunk, T = N*L tokens, M memories per chunk, D width, W numbers in one
memory, V vocabulary, R rows of packed tokens.
The strings are checked in tests by jaxtyping with beartype; in use they cost nothing.
"""

from __future__ import annotations

from typing import Final

from jaxtyping import Bool, Float, Int
from torch import Tensor

IGNORE_INDEX: Final = -100
"""Label of a position without a target; torch and transformers ignore it by default."""

TokenIds = Int[Tensor, "batch tokens"]
TokenMask = Int[Tensor, "batch tokens"] | Bool[Tensor, "batch tokens"]
Labels = Int[Tensor, "batch tokens"]
Memories = Float[Tensor, "batch memories numbers"]
Logits = Float[Tensor, "batch tokens vocabulary"]
