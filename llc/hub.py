"""Models as the Hugging Face Hub holds them: a folder of a repository, or its address, hf://owner/name.

`python -m llc.export RUN --to=hub` writes such a folder: model.safetensors, the saved encoder that a model is
loaded from; config.json, which describes it for people and other programs; README.md, the model card. Of a
repository the first two are downloaded and nothing else, and none of them can run code.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

import safetensors

from llc.errors import UserError
from llc.files import stand_in
from llc.packages import needed

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
LIBRARY = "llc"  # config.json's library_name, which tells a model of llc from others
FORMAT = 1  # of config.json
SAME = ("network", "preprocessing", "flip", "precision", "class_names", "stage")  # in both files

_SCHEME = re.compile(r"hf://?")  # pathlib takes one of the slashes away
_ADDRESS = re.compile(r"hf://?([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", re.ASCII)
_MAX_CONFIG = 1 << 26  # bytes: a config.json of more is not of llc, and is not downloaded
_TIMEOUT = 10  # seconds until the Hub answers


def is_address(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is an address on the Hub, rather than a path on this machine."""
    return _SCHEME.match(os.fspath(path)) is not None


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether there is a folder as the Hub holds it at `path`, rather than a run folder."""
    path = Path(path)
    return (
        path.is_dir()
        and not os.path.lexists(path / "config.yaml")
        and any(os.path.lexists(path / name) for name in (WEIGHTS, CONFIG))
    )


def find(path: str | os.PathLike[str]) -> Path:
    """The Path of what `path` names; an address is downloaded, unless it is in huggingface_hub's cache.

    Without a network, the cache's newest copy of that revision is taken. Raises UserError if huggingface_hub
    is not installed, and if the repository cannot be had or is not of llc.
    """
    return _download(os.fspath(path)) if is_address(path) else Path(path)


def model_file(folder: str | os.PathLike[str]) -> Path:
    """The Path of the saved encoder in a folder as the Hub holds it.

    Raises UserError if the folder is not of llc, if a file is missing, or if the two files are of different
    models.
    """
    config, path = read_config(folder), Path(folder) / WEIGHTS
    if not path.is_file():
        raise UserError(f"{folder}: {WEIGHTS} is missing; export the model or download the folder again")
    if something_else := _stand_in(path):
        raise UserError(f"{path}: {something_else}")
    try:
        with safetensors.safe_open(path, "pt") as file:
            content = json.loads((file.metadata() or {}).get("llc", "null"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (safetensors.SafetensorError, RuntimeError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a whole safetensors file of llc: {error}") from error
    if isinstance(content, dict):  # else the reader of saved encoders says what is wrong
        if differing := [key for key in SAME if config.get(key) != content.get(key)]:
            raise UserError(
                f"{folder}: {CONFIG} and {WEIGHTS} disagree on {', '.join(differing)}, so they are not of "
                "one export: write the folder again with python -m llc.export MODEL --to=hub, or download it "
                "again"
            )
    return path


def check_digest(folder: str | os.PathLike[str], digest: str) -> None:
    """Raises UserError if config.json was written for other weights than those with this digest."""
    if read_config(folder).get("network_digest") != digest:
        raise UserError(
            f"{folder}: {CONFIG} was written for other weights than those in {WEIGHTS}: write the folder "
            "again with python -m llc.export MODEL --to=hub, or download it again"
        )


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The config.json of a folder as the Hub holds it, a dict. Raises UserError if it is not of llc."""
    path = Path(folder) / CONFIG
    try:
        if something_else := stand_in(path):
            raise UserError(f"{path}: {something_else}")
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{folder}: {CONFIG} is missing, so it is not a folder of llc.export --to=hub; a single file can "
            f"be loaded by its own name, such as {Path(folder) / WEIGHTS}"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged: it is not JSON ({error})") from error
    if not isinstance(content, dict) or content.get("library_name") != LIBRARY:
        raise UserError(
            f"{path}: not of a model of llc: its library_name is not {LIBRARY!r}; llc loads folders that "
            "python -m llc.export MODEL --to=hub wrote"
        )
    if content.get("format") != FORMAT:
        raise UserError(
            f"{path}: its format is {content.get('format')!r:.40}; this version of llc reads {FORMAT}"
        )
    return content


def _stand_in(path: Path) -> str | None:
    try:
        return stand_in(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


# --------------------------------------------------------------------------------------------- the download


def _download(address: str) -> Path:
    """The folder in huggingface_hub's cache with both files of an address, of one commit."""
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise UserError(f"{address!r:.200}: expected hf://OWNER/NAME, or hf://OWNER/NAME@REVISION")
    repository, revision = match.groups()
    hub = needed("huggingface_hub", address, extra="hub")
    errors = needed("huggingface_hub.errors", address, extra="hub")
    where = f"{address}: the repository {repository}"
    try:
        try:
            # asked first, because hf_hub_download waits half a minute for a network that is not there
            url = hub.hf_hub_url(repository, CONFIG, revision=revision)
            size = hub.get_hf_file_metadata(url, timeout=_TIMEOUT).size
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.EntryNotFoundError):
            raise
        except errors.HFValidationError:
            raise
        except (TypeError, AttributeError, NameError):  # another version of huggingface_hub
            raise
        except Exception as error:  # no network; which error that is depends on huggingface_hub's version
            return _cached(hub, errors, address, repository, revision, error)
        if size is not None and size > _MAX_CONFIG:
            raise UserError(f"{where} is not of llc: its {CONFIG} has {size:,} bytes")
        config = Path(hub.hf_hub_download(repository, CONFIG, revision=revision))
        read_config(config.parent)  # before a large file is downloaded
        # By its commit, so that both files are of one version. The cache names its folder so.
        hub.hf_hub_download(repository, WEIGHTS, revision=config.parent.name)
        return config.parent
    except errors.HFValidationError as error:
        raise UserError(f"{address}: {repository} is no name of a repository: {_said(error)}") from error
    except errors.GatedRepoError as error:
        raise UserError(
            f"{where} is gated: ask for access on its page, then sign in with `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{where} does not exist, or is private: check the name; for a private one sign in with "
            "`hf auth login` as someone who may read it"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{where} has no revision {revision}: name a branch, a tag or a commit") from error
    except errors.LocalEntryNotFoundError as error:  # the network went away in between
        raise UserError(f"{address}: the download failed: {_said(error)}") from error
    except errors.EntryNotFoundError as error:
        raise UserError(
            f"{where} is not of llc: {CONFIG} or {WEIGHTS} is missing there; llc loads what python -m "
            "llc.export MODEL --to=hub wrote"
        ) from error
    except UserError:
        raise
    except Exception as error:  # a download may raise anything
        raise UserError(f"{address}: the download failed: {_said(error)}") from error


def _cached(
    hub: Any, errors: Any, address: str, repository: str, revision: str | None, why: Exception
) -> Path:
    """The folder in the cache, where the Hub cannot be asked for the reason `why`. Raises UserError."""
    status = getattr(getattr(why, "response", None), "status_code", None)
    if status in (401, 403):  # perhaps access was taken away, so that the cache must not answer
        raise UserError(
            f"{address}: the Hub refuses access ({status}): check the name, and sign in with `hf auth login`"
        ) from why
    said = (
        "huggingface_hub is told to stay offline (HF_HUB_OFFLINE)"
        if isinstance(why, errors.OfflineModeIsEnabled)
        else f"the Hub answers {status}"
        if status
        else f"the Hub cannot be reached ({_said(why)})"
    )
    try:
        config, _ = (
            Path(hub.hf_hub_download(repository, name, revision=revision, local_files_only=True))
            for name in (CONFIG, WEIGHTS)
        )
    except errors.LocalEntryNotFoundError:
        raise UserError(
            f"{address}: {said}, and the cache has no copy: check the network, or download the repository on "
            f"another machine with `hf download {repository} --local-dir FOLDER` and load FOLDER"
        ) from why
    return config.parent


def _said(error: Exception) -> str:
    """An error's message on one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__
