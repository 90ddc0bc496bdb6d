"""Where a value goes: questions to the graph that help to read an ambiguous call."""

from __future__ import annotations

import torch.fx

ATTENTION = ("scaled_dot_product_attention", "matmul", "bmm", "baddbmm", "einsum")
PASSED = {
    *("getitem", "permute", "transpose", "t", "mT", "unbind", "select", "slice", "chunk", "split", "split_with_sizes"),
    *("contiguous", "clone", "reshape", "view", "flatten", "unsqueeze", "squeeze", "expand", "cat", "alias", "detach"),
    *("mul", "div", "add", "relu", "elu", "softmax", "sigmoid", "layer_norm", "rms_norm", "to", "_to_copy"),
}
FARTHEST = 40


def leads_to_attention(node: torch.fx.Node) -> bool:
    """Say whether a value reaches a product between activations by data movement and scaling alone."""
    seen, queue = {node}, list(node.users)
    while queue and len(seen) < FARTHEST:
        user = queue.pop(0)
        if user in seen:
            continue
        seen.add(user)
        name = str(getattr(user.target, "__name__", user.target)).split(".")[0].rstrip("_")
        if name in ATTENTION:
            return True
        if name in PASSED:
            queue += list(user.users)
    return False
