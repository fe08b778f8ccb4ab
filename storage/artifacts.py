"""Model artifacts: a folder with `config.json` and `model.safetensors`, never pickle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load, save

from storage import files
from storage.errors import ArtifactError


def save_model(uri: str, kind: str, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """Writes an artifact: `kind` names what it is, `config` holds what rebuilds the module."""
    content = save({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()})
    files.write_bytes(files.join(uri, "model.safetensors"), content)
    files.write_json(files.join(uri, "config.json"), {"kind": kind, **config})


def load_model(uri: str, kind: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Reads an artifact back as (config, tensors); raises ArtifactError as `load_one_of` does."""
    return load_one_of(uri, (kind,), kind)[1:]


def load_one_of(uri: str, kinds: Sequence[str], what: str) -> tuple[str, dict[str, Any], dict[str, torch.Tensor]]:
    """Reads an artifact of one of several kinds back as (kind, config, tensors).

    The kind is judged before the weights are read.

    Args:
        uri: a folder.
        kinds: that may be there.
        what: they are together, for errors.

    Raises:
        ArtifactError: there is none, it is damaged, or it is of another kind.
    """
    with rebuilding(uri, what):
        config = files.read_json(files.join(uri, "config.json"))
        kind: Any = config.pop("kind", None) if isinstance(config, dict) else None
        if kind not in kinds:
            raise ArtifactError(f"{uri} holds a {kind or 'foreign file'}, not a {what}", uri)
        tensors = load(files.read_bytes(files.join(uri, "model.safetensors")))
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ArtifactError(f"The {what} at {uri} has values that are no numbers in {name}", uri)
    return kind, config, tensors


@contextmanager
def rebuilding(uri: str, what: str) -> Iterator[None]:
    """Words, for the length of a block, what an artifact's files and what is made of them raise.

    A GPU whose memory does not suffice says nothing of the artifact, and is no error of this kind.

    Raises:
        ArtifactError: a file is missing, or what it holds is damaged or does not fit this version.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except FileNotFoundError as error:
        raise ArtifactError(f"There is no {what} at {uri}", uri) from error
    except (ValueError, TypeError, LookupError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ArtifactError(f"The {what} at {uri} is damaged or of another version ({reason})", uri) from error


def model_digest(uri: str) -> str | None:
    """A digest of an artifact's configuration and tensors; None where there is none."""
    parts = [files.join(uri, name) for name in ("config.json", "model.safetensors")]
    if not all(files.exists(part) for part in parts):
        return None
    return xxhash.xxh3_64_hexdigest(b"".join(files.read_bytes(part) for part in parts))
