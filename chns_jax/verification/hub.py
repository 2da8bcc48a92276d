"""Published models on Hugging Face's hub; huggingface_hub, the extra `hub`, is imported here."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from chns_jax.common.errors import UserError, shortened
from chns_jax.config import RUN_CONFIG, WEIGHTS
from chns_jax.runs.published import BOX, CARD, front_matter
from chns_jax.verification.model_card import NO_LICENCE

NAME = re.compile(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", re.ASCII)
# Of a published model, all that an encoder is made of.
READ = (RUN_CONFIG, WEIGHTS, CARD, "calibration.json", "cohort-*.npz")


def find(name: str) -> str:
    """The folder of a published model: `name` itself, or where huggingface_hub keeps what it
    fetches of "org/name". Raises UserError when there is neither."""
    if name == BOX or os.path.isdir(os.path.expanduser(name)):
        return name
    check_name(name)
    hub = _import()
    try:
        return hub.snapshot_download(name, allow_patterns=list(READ))
    except Exception as error:  # of the network, the hub, or the name
        raise UserError(
            f"{name} is no folder, and cannot be fetched from the hub ({_reason(error)}): give a "
            "name that is there, or a folder"
        ) from error


def upload(folder: Path, name: str, *, private: bool) -> None:
    """Put a published model on the hub. Raises UserError when its card has no licence, without
    which nobody may use it, or the hub refuses."""
    if front_matter(folder).get("license", NO_LICENCE) == NO_LICENCE:
        raise UserError(
            f"the card of {name} has no licence, without which nobody may use it: give "
            "About(license=...), such as apache-2.0"
        )
    hub = _import()
    try:
        api = hub.HfApi()
        api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder)
    except Exception as error:
        raise UserError(
            f"{name} cannot be put on the hub ({_reason(error)}): see that you are logged in (hf "
            "auth login), and may write there"
        ) from error


def check_name(name: str) -> str:
    """The name. Raises UserError when it is none of the hub's."""
    if not NAME.fullmatch(name):
        raise UserError(
            f"{shortened(name)} is neither a folder nor a name on the hub, such as org/name"
        )
    return name


def _import() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(
            'names on the hub need huggingface_hub: pip install "chns_jax[hub]", or give a folder'
        ) from error
    return huggingface_hub


def _reason(error: Exception) -> str:
    """The kind of an error, and the beginning of what it says."""
    return f"{type(error).__name__}: {shortened(str(error))}"
