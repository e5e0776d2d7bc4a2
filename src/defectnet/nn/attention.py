"""Attention and transformer blocks.

Shape letters as everywhere: B batch, T tokens, D width. `S` counts the tokens that are attended to.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class Attention(nn.Module):
    """Multi-head scaled dot-product attention (Vaswani et al., arXiv 1706.03762).

    Projections to queries and keys carry no bias: a key's bias would cancel in the softmax.

    Args:
        width: D.
        heads: Number of heads; divides D.
        dropout: Share of attention weights dropped in training.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """Let every token of `x` gather from the tokens of `context`.

        Args:
            x: (B, T, D) the tokens that ask.
            context: (B, S, D) the tokens that answer; `x` itself for self-attention.
            mask: bool, broadcastable to (B, 1, T, S); false where `x` must not look. Each row needs one true.

        Returns:
            (B, T, D).
        """
        q, k, v = (self._split(layer(y)) for layer, y in ((self.query, x), (self.key, context), (self.value, context)))
        dropout = self.dropout if self.training else 0.0
        y = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout
        )  # (B, heads, T, D / heads)
        out: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return out

    def _split(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, heads, T, D / heads)."""
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)


class MLP(nn.Sequential):
    """Linear, GELU, Linear; (..., D) -> (..., D).

    Args:
        width: D.
        ratio: Hidden width over D.
        dropout: Share of outputs dropped in training.
    """

    def __init__(self, width: int, ratio: int, dropout: float = 0.0) -> None:
        super().__init__(
            nn.Linear(width, ratio * width), nn.GELU(), nn.Linear(ratio * width, width), nn.Dropout(dropout)
        )


class EncoderBlock(nn.Module):
    """Self-attention and MLP, each normalised before and added to its input (pre-norm).

    Args:
        width: D.
        heads: Number of heads.
        mlp_ratio: Hidden width of the MLP over D.
        dropout: Share of activations dropped in training.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.attention = Attention(width, heads, dropout)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = MLP(width, mlp_ratio, dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mix the tokens.

        Args:
            x: (B, T, D).
            mask: bool, broadcastable to (B, 1, T, T); false where a token must not be looked at.

        Returns:
            (B, T, D).
        """
        y = self.norm_attention(x)
        x = x + self.attention(y, y, mask)
        out: Tensor = x + self.mlp(self.norm_mlp(x))
        return out


class DecoderBlock(nn.Module):
    """Cross-attention to the encoded tokens, then an `EncoderBlock` among the queries.

    Args:
        width: D.
        heads: Number of heads.
        mlp_ratio: Hidden width of the MLP over D.
        dropout: Share of activations dropped in training.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm_cross = nn.LayerNorm(width)
        self.cross = Attention(width, heads, dropout)
        self.block = EncoderBlock(width, heads, mlp_ratio, dropout)

    def forward(self, x: Tensor, context: Tensor, context_mask: Tensor, mask: Tensor) -> Tensor:
        """Let the queries read the tokens and then each other.

        Args:
            x: (B, E, D) one query per element.
            context: (B, T, D) encoded tokens, normalised.
            context_mask: bool, broadcastable to (B, 1, E, T).
            mask: bool, broadcastable to (B, 1, E, E).

        Returns:
            (B, E, D).
        """
        x = x + self.cross(self.norm_cross(x), context, context_mask)
        out: Tensor = self.block(x, mask)
        return out


class CrossBlock(nn.Module):
    """Cross-attention and MLP: queries that read tokens, but not each other.

    Args:
        width: D.
        heads: Number of heads.
        mlp_ratio: Hidden width of the MLP over D.
        dropout: Share of activations dropped in training.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm_cross = nn.LayerNorm(width)
        self.cross = Attention(width, heads, dropout)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = MLP(width, mlp_ratio, dropout)

    def forward(self, x: Tensor, context: Tensor, context_mask: Tensor) -> Tensor:
        """Let the queries read the tokens.

        Args:
            x: (B, E, D) one query per element.
            context: (B, T, D) encoded tokens, normalised.
            context_mask: bool, broadcastable to (B, 1, E, T).

        Returns:
            (B, E, D).
        """
        x = x + self.cross(self.norm_cross(x), context, context_mask)
        out: Tensor = x + self.mlp(self.norm_mlp(x))
        return out
