"""Model artifacts: a folder with `config.json` and `model.safetensors`, never pickle."""

from __future__ import annotations

import json
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
    """Reads an artifact back as (config, tensors).

    Raises:
        ArtifactError: there is none, it is damaged, or it is of another kind.
    """
    try:
        config = files.read_json(files.join(uri, "config.json"))
        tensors = load(files.read_bytes(files.join(uri, "model.safetensors")))
    except FileNotFoundError as error:
        raise ArtifactError(f"There is no {kind} at {uri}", uri) from error
    except (json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
        raise ArtifactError(f"The {kind} at {uri} is damaged ({error})", uri) from error
    found = config.pop("kind", None) if isinstance(config, dict) else None
    if found != kind:
        raise ArtifactError(f"{uri} holds a {found or 'foreign file'}, not a {kind}", uri)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ArtifactError(f"The {kind} at {uri} has values that are no numbers in {name}", uri)
    return config, tensors


def model_digest(uri: str) -> str | None:
    """A digest of an artifact's configuration and tensors; None where there is none."""
    parts = [files.join(uri, name) for name in ("config.json", "model.safetensors")]
    if not all(files.exists(part) for part in parts):
        return None
    return xxhash.xxh3_64_hexdigest(b"".join(files.read_bytes(part) for part in parts))
