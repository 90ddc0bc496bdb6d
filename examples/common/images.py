"""Real images as tensors: from scikit-image's wheel or straight out of a zip; batches of random patches."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

# All of these lie in the wheel; others of skimage.data would be downloaded.
TRAIN_GREY = ("brick", "coins", "grass", "gravel", "moon", "page", "clock")
TEST_GREY = ("camera",)
TRAIN_COLOUR = ("coffee", "rocket", "hubble_deep_field", "immunohistochemistry", "retina")
TEST_COLOUR = ("astronaut", "chelsea")

Pair = tuple[Tensor, Tensor]  # small and large image of one scene, bytes (C, H, W) and (C, scale H, scale W)


def shipped(names: Sequence[str], channels: int) -> dict[str, Tensor]:
    """Return images of scikit-image by name, uint8 ``(channels, H, W)``."""
    from skimage import data

    return {name: as_tensor(getattr(data, name)(), channels) for name in names}


def zipped(archive: Path, channels: int) -> dict[str, Tensor]:
    """Return the PNG images of a zip by name, uint8 ``(channels, H, W)``; nothing is unpacked.

    Raises:
        FileNotFoundError: no such archive.
    """
    from PIL import Image

    images = {}
    with zipfile.ZipFile(archive) as files:
        for name in sorted(n for n in files.namelist() if n.lower().endswith(".png")):
            with Image.open(io.BytesIO(files.read(name))) as picture:
                images[Path(name).stem] = as_tensor(np.asarray(picture), channels)
    return images


def as_tensor(pixels: np.ndarray, channels: int) -> Tensor:
    """Return bytes ``(H, W)`` or ``(H, W, 3 or 4)`` as uint8 ``(channels, H, W)``, grey or colour as asked for."""
    from PIL import Image

    picture = Image.fromarray(pixels).convert("L" if channels == 1 else "RGB")
    return torch.from_numpy(np.array(picture)).reshape(*pixels.shape[:2], channels).permute(2, 0, 1).contiguous()


def resized(images: Tensor, factor: float) -> Tensor:
    """Return ``(N, C, H, W)`` resized by the bicubic filter of the super-resolution literature (antialiased, a = -0.5).

    Values stay whole numbers of 1/255 in [0, 1], as if the result had been saved as a picture.
    """
    size = [round(side * factor) for side in images.shape[-2:]]
    resampled = F.interpolate(images, size=size, mode="bicubic", antialias=True, align_corners=False)
    return (resampled.clamp(0, 1) * 255).round() / 255


def pairs_of_scales(images: dict[str, Tensor], scale: int) -> dict[str, Pair]:
    """Return each image reduced by ``scale``, beside itself trimmed to a multiple of ``scale``."""
    pairs = {}
    for name, image in images.items():
        height, width = (side - side % scale for side in image.shape[-2:])
        large = image[:, :height, :width]
        pairs[name] = ((resized(large[None] / 255, 1 / scale)[0] * 255).round().byte(), large)
    return pairs


def in_equal_parts(*kinds: dict[str, Pair]) -> list[Pair]:
    """Return all pairs, those of the smaller kinds repeated, so that a random draw meets every kind about as often.

    Grey images alone teach a colour network to make grey ones.
    """
    most = max(len(kind) for kind in kinds)
    return [pair for kind in kinds for pair in [*kind.values()] * round(most / len(kind))]


def batches(pairs: Sequence[Pair], size: int, batch_size: int, steps: int, seed: int) -> Iterator[Pair]:
    """Yield random aligned patches, turned and mirrored by chance; the same ones for the same seed.

    Yields:
        floats in [0, 1]: ``(batch_size, C, size, size)`` and ``(batch_size, C, scale size, scale size)``.
    """
    rng = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        chosen = torch.randint(len(pairs), (batch_size,), generator=rng).tolist()
        patches = [_patch(pairs[at], size, rng) for at in chosen]
        small, large = (torch.stack(side).float() / 255 for side in zip(*patches, strict=True))
        yield small, large


def recoloured(batches: Iterable[Pair], seed: int) -> Iterator[Pair]:
    """Yield batches ``(N, 3, H, W)`` whose patches have their colours in an order drawn by chance: red may become blue.

    Few colour images show few colours; a network that learns from them alone paints others in theirs.
    """
    rng = torch.Generator().manual_seed(seed)
    for small, large in batches:
        order = torch.stack([torch.randperm(3, generator=rng) for _ in small])[:, :, None, None]
        yield small.take_along_dim(order, 1), large.take_along_dim(order, 1)


def _patch(pair: Pair, size: int, rng: torch.Generator) -> Pair:
    small, large = pair
    scale = large.shape[-1] // small.shape[-1]
    top, left = (int(torch.randint(side - size + 1, (1,), generator=rng)) for side in small.shape[-2:])
    turns, mirrored = torch.randint(4, (1,), generator=rng).item(), torch.rand(1, generator=rng).item() < 0.5
    cuts = []
    for image, factor in ((small, 1), (large, scale)):
        cut = image[:, factor * top : factor * (top + size), factor * left : factor * (left + size)]
        cut = cut.rot90(turns, (1, 2))
        cuts.append(cut.flip(2) if mirrored else cut)
    return cuts[0], cuts[1]


def with_noise(images: Tensor, sigma: float, seed: int) -> Tensor:
    """Return ``images`` in [0, 1] plus Gaussian noise of ``sigma`` grey levels (of 255); the same for the same seed."""
    rng = torch.Generator().manual_seed(seed)
    return images + torch.randn(images.shape, generator=rng) * (sigma / 255)


def padded(images: Tensor, multiple: int) -> Tensor:
    """Return ``(N, C, H, W)`` with mirrored borders at the right and below, so that ``multiple`` divides H and W."""
    down, across = (-side % multiple for side in images.shape[-2:])
    return F.pad(images, (0, across, 0, down), mode="reflect")
