"""Files of the Hugging Face Hub by name: cached, checked, and with a plan for no network.

A name is "owner/name", "owner/name@revision", or with the prefix "hf://", which also takes a file:
"hf://owner/name@revision/some/file.npz". The client (extra `hub`) keeps its cache and its rules:
HF_HUB_OFFLINE, HF_HOME, HF_ENDPOINT, HF_TOKEN.
"""

import hashlib
import importlib.util
import logging
import os
import re
from pathlib import Path
from typing import NamedTuple

from atss_jax.errors import UserError

logger = logging.getLogger(__name__)

PREFIX = "hf://"
WEIGHTS_FILE = "model.safetensors"
"""The file of a repository when a name does not give one."""
WEIGHT_SUFFIXES = (".safetensors", ".npz", ".pth", ".pt", ".pkl")
"""Of local weight files; a name of the hub that ends with one of them begins with `PREFIX`."""

_WORD = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?"
_NAME = re.compile(
    rf"(?P<repository>{_WORD}/{_WORD})(?:@(?P<revision>[\w.-]+))?(?:/(?P<file>[^@]+))?"
)
_SHA256 = re.compile(r"[0-9a-f]{64}")


class HubName(NamedTuple):
    """A repository of the hub, or a file in it."""

    repository: str
    """ "owner/name"."""
    revision: str = "main"
    """Branch, tag or commit."""
    file: str = ""
    """Path in the repository, "" where the name gives none."""

    def address(self, file: str) -> str:
        """Where a browser finds a file."""
        endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
        return f"{endpoint}/{self.repository}/resolve/{self.revision}/{file}"


def parse_name(text: str) -> HubName:
    """The parts of a name.

    Raises:
      UserError: it is no name of the hub.
    """
    match = _NAME.fullmatch(text.removeprefix(PREFIX))
    if not match:
        raise UserError(
            f"{text}: no name of the hub. Give hf://owner/name, hf://owner/name@revision or "
            "hf://owner/name@revision/file."
        )
    return HubName(match["repository"], match["revision"] or "main", match["file"] or "")


def is_hub_name(text: str | os.PathLike[str]) -> bool:
    """Whether a path that a user gave means the hub: hf://..., or owner/name that is no path."""
    if not isinstance(text, str) or text.startswith(PREFIX):
        return isinstance(text, str)
    match = _NAME.fullmatch(text)
    is_name = match is not None and match["file"] is None
    return is_name and not text.endswith(WEIGHT_SUFFIXES) and not os.path.exists(text)


def check_client(name: HubName, file: str, *, option: str) -> None:
    """Raises UserError where the hub's client is not installed; the arguments are `fetch`'s."""
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UserError(
            f"{name.repository} is a name of the hub, which needs pip install 'atss_jax[hub]'. Or "
            f"fetch {name.address(file)} and give its path to {option}."
        )


def fetch(name: HubName, file: str, *, option: str) -> Path:
    """The local path of a file, from the cache or the hub; its SHA-256 is compared with the hub's.

    Args:
      name: of the repository.
      file: path in the repository.
      option: what to give the path of a local file to, for the error without a network.

    Raises:
      UserError: no client, no such repository, revision or file, no network and no cached file, or
        a digest that is not the hub's.
    """
    check_client(name, file, option=option)
    import huggingface_hub  # pyright: ignore[reportMissingImports]
    from huggingface_hub import errors  # pyright: ignore[reportMissingImports]

    try:
        path = Path(huggingface_hub.hf_hub_download(name.repository, file, revision=name.revision))
    except errors.GatedRepoError as error:
        raise UserError(
            f"{name.repository}: its owner asks for a login. Accept the terms on the hub and set "
            "HF_TOKEN."
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise UserError(_without_network(name, file, option)) from error
    except errors.EntryNotFoundError as error:
        raise UserError(f"{name.repository}: no file {file} at {name.revision}.") from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{name.repository}: no revision {name.revision}.") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{name.repository}: no such repository on the hub, and no such file here. Check the "
            "name; a private one needs HF_TOKEN."
        ) from error
    except OSError as error:
        raise UserError(f"{_without_network(name, file, option)} ({error})") from error
    digest = _check_digest(path)
    logger.info(
        "%s: %s, revision %s, sha256 %s", name.repository, file, _commit_of(path), digest[:16]
    )
    return path


def _without_network(name: HubName, file: str, option: str) -> str:
    folder = "models--" + name.repository.replace("/", "--")
    return (
        f"{name.repository}: {file} is not in the cache and the hub cannot be reached (or "
        f"HF_HUB_OFFLINE is set). Where there is a network, fetch {name.address(file)} and give "
        f"the path to {option}, or copy the folder {folder} into the cache here "
        "(~/.cache/huggingface/hub, or hub in $HF_HOME)."
    )


def _commit_of(path: Path) -> str:
    """The commit of a file in the cache, which keeps snapshots/COMMIT/path/of/the/file."""
    parts = path.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else "unknown"


def _check_digest(path: Path) -> str:
    """The SHA-256 of a file, which the cache has in the name of a large file's content.

    Raises:
      UserError: it is another.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    expected = path.resolve().name
    if _SHA256.fullmatch(expected) and expected != digest:
        raise UserError(
            f"{path}: SHA-256 {digest}, the hub says {expected}. The file in the cache is damaged: "
            f"delete {path.resolve()} and try again."
        )
    return digest
