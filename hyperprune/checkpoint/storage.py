"""The file itself: tensors, the document and a checksum over both, as safetensors.

safetensors checks its own table of contents but not the bytes behind it; the checksum does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from hyperprune.checkpoint.document import Document
from hyperprune.checkpoint.weights import digest
from hyperprune.errors import CheckpointError, MissingLibraryError
from hyperprune.files import draft_of

DOCUMENT, CHECKSUM = "hyperprune", "hyperprune_sha256"


def write_slim(path: str | Path, document: Document, tensors: Mapping[str, Tensor]) -> Path:
    """Write a checkpoint whole or not at all.

    Raises:
        CheckpointError: safetensors does not know one of the dtypes.
        FileError: the file cannot be written; what stood there before is intact.
        MissingLibraryError: safetensors is not installed.
    """
    safetensors = _safetensors()
    text = document.to_text()
    notes = {"format": "pt", DOCUMENT: text, CHECKSUM: digest(text, tensors)}
    with draft_of(path) as draft:
        try:
            safetensors.torch.save_file({name: tensor.cpu() for name, tensor in tensors.items()}, draft, notes)
        except safetensors.SafetensorError as error:  # a full disk, for instance
            raise OSError(str(error)) from error
        except (KeyError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{path}: safetensors cannot hold these tensors: {error}") from error
    return Path(path)


def read_slim(path: str | Path) -> tuple[Document, dict[str, Tensor]]:
    """Read a checkpoint and check every byte of it.

    Raises:
        CheckpointError: the file is missing, damaged, or not one that ``save_pruned`` wrote.
    """
    with _opened(path) as file:
        notes: dict[str, str] = file.metadata() or {}
        document = _document(notes)
        tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if digest(notes[DOCUMENT], tensors) != notes.get(CHECKSUM):
            raise CheckpointError("the file is damaged: its checksum does not fit. Fetch it or save it again.")
    return document, tensors


def read_document(path: str | Path) -> Document:
    """Return what a checkpoint says about itself, without its weights (the checksum is left to ``load_pruned``).

    Raises:
        CheckpointError: the file is missing, damaged, or not one that ``save_pruned`` wrote.

    Example:
        >>> read_document("slim.safetensors").metadata  # doctest: +SKIP
        {'accuracy': '0.761'}
    """
    with _opened(path) as file:
        return _document(file.metadata() or {})


@contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    """Open a file for reading; every error that comes up names it."""
    if not Path(path).is_file():
        raise CheckpointError(f"{path} is {'a folder' if Path(path).is_dir() else 'no file'}; name one to load.")
    try:
        with _safetensors().safe_open(path, framework="pt") as file:
            yield file
    except MissingLibraryError:
        raise
    except CheckpointError as error:
        error.args = (f"{path}: {error}",)
        raise
    except Exception as error:  # whatever safetensors or torch raise on a damaged file
        raise CheckpointError(f"{path} is no readable safetensors file: {error}") from error


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise MissingLibraryError("safetensors is not installed: pip install 'hyperprune[checkpoint]'") from error
    return safetensors


def _document(notes: Mapping[str, str]) -> Document:
    if DOCUMENT not in notes:
        raise CheckpointError(
            "it holds no width plan, so save_pruned did not write it. Plain weights are read by "
            "model.load_state_dict(safetensors.torch.load_file(path))."
        )
    return Document.from_text(notes[DOCUMENT])
