"""VisualBERT's self-attention, fast where it is trained: one product for queries, keys and values, and everything in bf16.

Vaswani et al. 2017, section 3.2; the weights and their names are transformers' `VisualBertSelfAttention`'s.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers.models.visual_bert.modeling_visual_bert import VisualBertSelfAttention


class SelfAttention(nn.Module):
    """Multi-head self-attention with the weights of a VisualBertSelfAttention, and no dropout on what it attends to."""

    def __init__(self, attention: VisualBertSelfAttention):
        """Take the projections of `attention`."""
        super().__init__()
        self.heads = attention.num_attention_heads
        self.query, self.key, self.value = attention.query, attention.key, attention.value

    def forward(self, hidden: Tensor, bias: Tensor, output_attentions: bool = False) -> tuple[Tensor]:
        """Return [B, N, D] for hidden [B, N, D], with bias [B, 1, 1, N] added to every logit, in a tuple as transformers does.

        In float32 on a processor each step is taken as transformers takes it. Under autocast to bf16 there it is Attend,
        which has half the bytes to move; on other devices the kernel that PyTorch chooses.
        """
        device = hidden.device.type
        if device == "cpu" and not torch.is_autocast_enabled(device):
            query, key, value = (self.split(project(hidden)) for project in (self.query, self.key, self.value))
            logits = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5 + bias  # [B, H, N, N]
            return (self.merged(logits.softmax(dim=-1) @ value),)
        projections = self.query, self.key, self.value
        weight, offset = (torch.cat([getattr(each, name) for each in projections]) for name in ("weight", "bias"))
        joined = functional.linear(hidden, weight, offset).unflatten(-1, (3, self.heads, -1))  # [B, N, 3, H, d]
        parts = joined.permute(2, 0, 3, 1, 4)  # [3, B, H, N, d]
        if device == "cpu":
            return (self.merged(Attend.apply(parts, bias)),)
        query, key, value = parts.unbind()
        mask = bias.to(query.dtype)
        return (self.merged(functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)),)

    def split(self, x: Tensor) -> Tensor:
        """Return x [B, N, D] by heads, [B, H, N, d]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def merged(self, x: Tensor) -> Tensor:
        """Return x [B, H, N, d] with its heads side by side, [B, N, D]."""
        return x.transpose(1, 2).flatten(2)


class Attend(torch.autograd.Function):
    """softmax(q k' / sqrt(d) + bias) v, of which only q, k, v and the weights are kept for the backward pass, as they came.

    PyTorch's own steps under autocast keep logits and weights in float32 too, of which there are N for each token and head:
    most of what a step reads and writes beside its matrix products.
    """

    @staticmethod
    def forward(ctx: Any, parts: Tensor, bias: Tensor) -> Tensor:
        """Return [B, H, N, d] for parts [3, B, H, N, d], which are queries, keys and values, and bias [B, 1, 1, N]."""
        _, size, heads, tokens, width = parts.shape
        parts = parts.reshape(3, size * heads, tokens, width)
        query, key, value = parts
        bias = bias.to(parts.dtype).expand(size, heads, 1, tokens).reshape(size * heads, 1, tokens)
        logits = torch.baddbmm(bias, query, key.transpose(1, 2), alpha=width**-0.5)  # [B H, N, N]
        # PyTorch's softmax of bf16 takes twice the time of float32's
        weights = logits.float().softmax(dim=-1).to(parts.dtype)
        ctx.save_for_backward(parts, weights)
        return torch.bmm(weights, value).view(size, heads, tokens, width)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of the parts, [3, B, H, N, d]."""
        parts, weights = ctx.saved_tensors
        query, key, value = parts
        shape = gradient.shape
        gradient = gradient.reshape(value.shape)
        of_weights = torch.bmm(gradient, value.transpose(1, 2))
        of_logits = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype).mul_(shape[-1] ** -0.5)
        found = torch.empty_like(parts)
        torch.bmm(of_logits, key, out=found[0])
        torch.bmm(of_logits.transpose(1, 2), query, out=found[1])
        torch.bmm(weights.transpose(1, 2), gradient, out=found[2])
        return found.view(3, *shape), None
