"""How to train on a device: bfloat16 autocast and channels last where that pays, plain float32 where it does not."""

from __future__ import annotations

from functools import cache

import torch

CPU_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "bf16")  # Intel and AMD, Intel and AMD, ARM
BFLOAT16, FLOAT32 = "bfloat16 autocast", "float32"


def autocast(device: torch.device) -> torch.autocast:
    """Return a context of bfloat16 autocast, or one that changes nothing."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision(device) == BFLOAT16)


def layout(device: torch.device) -> torch.memory_format:
    """Return how images and weights are to lie in memory.

    Not channels last on a processor without bfloat16: on such ones, oneDNN's float32 gradient of a strided 1 x 1
    convolution with fewer than 8 input channels writes past its buffer (https://github.com/uxlfoundation/oneDNN/issues/6035,
    still so in torch 2.15), and pruning makes just these layers.
    """
    return torch.channels_last if precision(device) == BFLOAT16 else torch.contiguous_format


def precision(device: torch.device) -> str:
    """Say in words what :func:`autocast` computes in.

    A processor without instructions for bfloat16 takes more than ten times as long for it as for float32.
    """
    return BFLOAT16 if _has_bfloat16(device.type) else FLOAT32


def precision_here() -> str:
    """Say what trainings on this machine compute in: on its GPU, if there is one."""
    return precision(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


@cache
def _has_bfloat16(kind: str) -> bool:
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return any(_cpu_features().get(name, False) for name in CPU_INSTRUCTIONS)


def _cpu_features() -> dict[str, bool]:
    """Return what torch says of the processor; nothing where torch is too old to say."""
    return dict(getattr(torch.cpu, "get_capabilities", dict)())
