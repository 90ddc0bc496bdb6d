"""PSNR and SSIM as the tables of the field give them, computed by scikit-image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Quality:
    """PSNR in dB and SSIM, of one image or the mean of several."""

    psnr: float
    ssim: float

    @classmethod
    def mean(cls, several: Sequence[Quality]) -> Quality:
        """Return the mean of each measure."""
        return cls(float(np.mean([q.psnr for q in several])), float(np.mean([q.ssim for q in several])))


def quality(restored: Tensor, clean: Tensor, border: int = 0) -> Quality:
    """Compare two images ``(C, H, W)`` in [0, 1], rounded to bytes; colour by its luma (Y of ITU-R BT.601).

    Args:
        restored: what a network made.
        clean: what it should have made.
        border: pixels left out at every side; super-resolution leaves out as many as its scale.
    """
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    ours, truth = (_inner(luma(image), border) for image in (restored, clean))
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}  # Wang et al., 2004
    return Quality(
        float(peak_signal_noise_ratio(truth, ours, data_range=255)),
        float(structural_similarity(truth, ours, data_range=255, **window)),
    )


def luma(image: Tensor) -> np.ndarray:
    """Return grey levels ``(H, W)`` from 0 to 255: bytes of a grey image, Y (16 to 235) of a colour image."""
    from skimage.color import rgb2ycbcr

    pixels = (image.detach().float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return pixels[..., 0].astype(np.float64) if pixels.shape[-1] == 1 else rgb2ycbcr(pixels)[..., 0]


def _inner(levels: np.ndarray, border: int) -> np.ndarray:
    return levels[border : levels.shape[0] - border, border : levels.shape[1] - border]
