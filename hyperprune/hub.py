"""Slim networks on the Hugging Face Hub, by the standard mixin (needs ``pip install 'hyperprune[hub]'``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from hyperprune.checkpoint import load_pruned, save_pruned
from hyperprune.errors import MissingLibraryError, ModelError
from hyperprune.loading import arguments_of

try:
    from huggingface_hub import ModelHubMixin, hf_hub_download
    from huggingface_hub.constants import SAFETENSORS_SINGLE_FILE
except ImportError as error:
    raise MissingLibraryError("huggingface_hub is not installed: pip install 'hyperprune[hub]'") from error

LIBRARIES = ("timm/", "torchvision/")


class HubModel(nn.Module, ModelHubMixin, library_name="hyperprune", tags=["pruning", "model-compression"]):
    """A slim network with ``save_pretrained``, ``push_to_hub`` and ``from_pretrained``.

    The repository holds what ``save_pruned`` writes. To load it, say which dense network to carve, or let the
    repository say: it may name a model of timm or torchvision, and nothing else, so that no code of its choice runs.

    Args:
        model: what ``export_pruned`` or ``load_pruned`` returned.
        spec: the name of the dense network, ``"timm/resnet50"`` for instance; not needed for classes of your own.

    Example:
        >>> import torch
        >>> from hyperprune import Budget, prune
        >>> folder, x = getfixture("tmp_path"), torch.randn(1, 4)
        >>> dense = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> HubModel(prune(dense, x, Budget(macs=0.5))).save_pretrained(folder)
        >>> HubModel.from_pretrained(folder, model=dense).model[0].out_features
        4
    """

    def __init__(self, model: nn.Module, spec: str = "") -> None:
        super().__init__()
        self.model = model
        self.spec = spec

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def _save_pretrained(self, save_directory: Path) -> None:
        save_pruned(self.model, save_directory / SAFETENSORS_SINGLE_FILE)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **model_kwargs: Any,
    ) -> HubModel:
        """Load a repository or a folder; like every ``from_pretrained`` in eval mode.

        Raises:
            ModelError: no dense network is given, and the repository names none of timm or torchvision.
            CheckpointError: as ``load_pruned``.
        """
        model, spec = model_kwargs.get("model"), model_kwargs.get("spec")
        dense = model if isinstance(model, nn.Module) else _named(model or spec, model_id)
        path = Path(model_id) / SAFETENSORS_SINGLE_FILE
        if not Path(model_id).is_dir():
            path = Path(
                hf_hub_download(
                    model_id,
                    SAFETENSORS_SINGLE_FILE,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                )
            )
        return cls(load_pruned(dense, path), spec if isinstance(spec, str) else "").eval()


def _named(name: object, repository: str) -> str:
    """Return a name that may come from a stranger's configuration, if it only names a model of a library.

    Its arguments may be numbers: words could name a file to unpickle (timm's ``checkpoint_path``) or weights to fetch.
    """
    if isinstance(name, str) and name.startswith(LIBRARIES):
        words = [f"{key}={value!r}" for key, value in arguments_of(name).items() if not _is_numbers(value)]
        if words:
            raise ModelError(
                f"{repository} asks for {name!r}, and {', '.join(words)} could name a file to run code from. If you "
                "trust it, build the dense network yourself: HubModel.from_pretrained(repository, model=...)."
            )
        return name
    raise ModelError(
        f"{repository} names no model of timm or torchvision. Pass the dense network that it was pruned from: "
        "HubModel.from_pretrained(repository, model=MyNet())."
    )


def _is_numbers(value: object) -> bool:
    if isinstance(value, (tuple, list)):
        return all(_is_numbers(item) for item in value)
    return isinstance(value, (bool, int, float))
