"""Initialise the attention of a tiny policy to copy, which it would take most of the warm-up to learn.

A model trained from nothing needs thousands of steps before heads form that find an earlier place in the
context and copy from it. Reading an answer out of a passage and repeating a question's words in a query
both rely on that. So the heads start close to where training would move them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

# Rotary frequencies below this turn by less than half a circle over a question: a match survives the distance.
_SLOW = 0.05


def start_for_names(model: Any) -> None:
    """Initialise a ``Qwen2ForCausalLM`` to copy names of one token, found by the words before them.

    The output head starts equal to the embeddings. Heads start attending to tokens like their own and
    passing on what they attend to: keys equal to queries, outputs the transposed values (mimetic
    initialisation, Trockman and Kolter, arXiv 2305.09828, with a positive sign here). Two heads of the
    first layer start looking one and two tokens back.
    """
    import torch

    with torch.no_grad():
        model.lm_head.weight.copy_(model.model.embed_tokens.weight)
        for layer in model.model.layers:
            attention = layer.self_attn
            attention.k_proj.weight.copy_(attention.q_proj.weight)
            attention.o_proj.weight.copy_(attention.v_proj.weight.T * 0.5)
        for head in range(2):
            _look_back(model, head, tokens=head + 1, sharpness=1.5)


def start_for_phrases(model: Any) -> None:
    """Initialise a ``Qwen2ForCausalLM`` to copy phrases: continue as the text did after an earlier place like this one.

    An induction head (Olsson et al., arXiv 2209.11895) written into the weights. Heads of the first layer
    look one token back and write what they find into a separate direction (``turned``). Heads of the
    second layer look for places whose *previous* token is the current one, and pass on the token there.
    """
    import torch

    start_for_names(model)
    size = model.config.hidden_size
    first, second = (model.model.layers[n].self_attn for n in (0, 1))
    width = 2 * first.head_dim  # the width of two heads
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.mul_(0.05)  # random layers would drown the copied signal
        previous, turned, passed_on = _orthonormal(width, size), _orthonormal(size, size), _orthonormal(size, size)
        for head in range(2):
            _look_back(model, head, tokens=1, sharpness=4.0)
        first.v_proj.weight[:width] = previous
        first.o_proj.weight[:, width:] *= 0.1
        first.o_proj.weight[:, :width] = turned @ previous.T * (2 * size**-0.5)
        slow = torch.cat([model.model.rotary_emb.inv_freq] * 2) < _SLOW
        for head in range(model.config.num_attention_heads):
            rows = slice(head * second.head_dim, (head + 1) * second.head_dim)
            current = _orthonormal(second.head_dim, width) @ previous * slow[:, None] * 3.0
            second.q_proj.weight[rows] = current
            second.k_proj.weight[rows] = current @ turned.T
        second.v_proj.weight.copy_(passed_on)
        second.o_proj.weight.copy_(passed_on.T * 0.5)


START: dict[str, Callable[[Any], None]] = {"names": start_for_names, "phrases": start_for_phrases}


def _look_back(model: Any, head: int, *, tokens: int, sharpness: float) -> None:
    """Make a head of the first layer attend ``tokens`` before its own position, whatever is there."""
    import torch

    attention = model.model.layers[0].self_attn
    rows = slice(head * attention.head_dim, (head + 1) * attention.head_dim)
    # A rotary score of constant vectors depends only on the distance; turning the query back by n
    # positions moves its peak to n tokens before.
    turn = -tokens * model.model.rotary_emb.inv_freq
    attention.k_proj.bias[rows] = sharpness
    attention.q_proj.bias[rows] = sharpness * torch.cat([turn.cos() - turn.sin(), turn.cos() + turn.sin()])
    attention.q_proj.weight[rows] *= 0.1
    attention.k_proj.weight[rows] *= 0.1


def _orthonormal(rows: int, columns: int) -> Tensor:
    """Return random orthonormal rows, ``(rows, columns)``."""
    import torch

    return torch.linalg.qr(torch.randn(columns, rows))[0].T
