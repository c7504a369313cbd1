"""What can go wrong between here and the Hugging Face Hub, each as one sentence that says what to do."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # of the HTTP library that huggingface_hub uses, which differs between its versions
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


class HubUnreachableError(ValueError):
    """The hub did not answer; what is on this machine already can still be used."""


@contextmanager
def explained(repo: str, *, revision: str | None = None, file: str | None = None) -> Iterator[None]:
    """Within the block, errors of `huggingface_hub` become one sentence.

    Args:
        repo: The repository that is asked for something.
        revision: The revision asked for, None for the newest.
        file: The file asked for; None while the repository itself is looked up.

    Raises:
        HubUnreachableError: If the hub did not answer.
        ValueError: If it refused, does not have it, or what came is not whole.
    """
    what = f"{file} of {repo}" if file else repo
    try:
        yield
    except HFValidationError as error:
        raise ValueError(
            f"{repo!r} is no folder on this machine, nor can it be a repository of the hub; give a folder that is "
            "there, or OWNER/NAME"
        ) from error
    except (OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
        raise _unreachable(what, error) from error
    except HfHubHTTPError as error:
        raise _refused(error, repo, what, revision) from error
    except EntryNotFoundError as error:
        raise ValueError(f"{repo} has no file {file}; check the repository's name and revision") from error
    except FileMetadataError as error:
        raise ValueError(
            f"{constants.ENDPOINT} does not answer as a hub does: no size or version of {what}; check HF_ENDPOINT"
        ) from error
    except HTTPError as error:
        raise _unreachable(what, error) from error
    except OSError as error:
        raise _broken(what, error, Path(constants.HF_HUB_CACHE), "HF_HOME") from error
    except RuntimeError as error:  # of hf_xet, through which large files come where it is installed
        if "No space left" in str(error):
            full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise _broken(what, full, Path(constants.HF_HUB_CACHE), "HF_HOME") from error
        reason = " ".join(str(error).split())
        raise ValueError(
            f"the download of {what} failed ({reason}); start it again, or without Xet: HF_HUB_DISABLE_XET=1"
        ) from error


@contextmanager
def writing(what: str, folder: Path, *, variable: str) -> Iterator[None]:
    """Within the block, errors of the disk become one sentence.

    Args:
        what: What is being written.
        folder: Where it goes.
        variable: Environment variable that moves the folder elsewhere.

    Raises:
        ValueError: If the disk is full or refuses.
    """
    try:
        yield
    except TimeoutError:  # of a lock that another process holds, which is no matter of the disk
        raise
    except OSError as error:
        raise _broken(what, error, folder, variable) from error


def _refused(error: HfHubHTTPError, repo: str, what: str, revision: str | None) -> ValueError:
    """The sentence for an answer that is not a success."""
    status = error.response.status_code
    page = f"{constants.ENDPOINT}/{repo}"
    if isinstance(error, GatedRepoError):
        return ValueError(f"{repo} is gated: accept its terms on {page}, then {LOG_IN}")
    if isinstance(error, RevisionNotFoundError):
        return ValueError(f"{repo} has no revision {revision!r}; see {page}/commits for those that it has")
    if isinstance(error, EntryNotFoundError):
        return ValueError(
            f"{what} does not exist on {constants.ENDPOINT}; check the repository and its revision"
        )
    # The hub answers 401 alike for what is private and for what does not exist, so as not to tell which.
    if status in (401, 403):
        return ValueError(
            f"access to {what} was refused ({status}): it is private, gated or does not exist; check the name, "
            f"then {LOG_IN}"
        )
    if isinstance(error, RepositoryNotFoundError) or status == 404:
        return ValueError(
            f"there is no repository {repo} on {constants.ENDPOINT}, nor a folder of that name here; check it"
        )
    if status >= 500 or status == 429:
        return HubUnreachableError(
            f"{constants.ENDPOINT} cannot serve {what} now ({status}); try again later"
        )
    return ValueError(f"{constants.ENDPOINT} answered {status} when asked for {what}; try again later")


def _unreachable(what: str, error: BaseException) -> HubUnreachableError:
    """The sentence for no answer at all."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    if constants.HF_HUB_OFFLINE or any(isinstance(link, OfflineModeIsEnabled) for link in chain):
        return HubUnreachableError(
            f"{what} is not on this machine yet, and HF_HUB_OFFLINE forbids to download it; unset it once"
        )
    if any("timeout" in type(link).__name__.lower() for link in chain):
        return HubUnreachableError(
            f"{constants.ENDPOINT} is too slow: no answer in time for {what}; try again, or give it more seconds "
            "with HF_HUB_DOWNLOAD_TIMEOUT and HF_HUB_ETAG_TIMEOUT"
        )
    return HubUnreachableError(
        f"cannot reach {constants.ENDPOINT} for {what}, which is not on this machine yet; check the network"
    )


def _broken(what: str, error: OSError, folder: Path, variable: str) -> ValueError:
    """The sentence for bytes that could not be kept, or did not come as a whole."""
    if error.errno == errno.ENOSPC:
        return ValueError(
            f"the disk is full, {what} does not fit into {folder}; free some space, or set {variable} to a folder on "
            "another disk"
        )
    if error.errno is None:  # huggingface_hub's own: the size is not the one announced
        return ValueError(
            f"the download of {what} is not complete: not as many bytes came as announced; start again"
        )
    where = f" ({error.filename})" if error.filename else ""
    return ValueError(f"{what} cannot be stored in {folder}: {error.strerror}{where}; check that folder")


def check_free_space(folder: Path, num_bytes: int, what: str, *, variable: str) -> None:
    """Checks that a disk has room.

    Args:
        folder: Where the bytes go; it need not exist yet.
        num_bytes: How many.
        what: What they are, for the sentence.
        variable: Environment variable that moves the folder elsewhere.

    Raises:
        ValueError: If they do not fit.
    """
    free = shutil.disk_usage(_existing(folder)).free
    if num_bytes > free:
        raise ValueError(
            f"{what} needs {_gigabytes(num_bytes)} of disk in {folder}, which has {_gigabytes(free)} left; free some "
            f"space, or set {variable} to a folder on another disk"
        )


def check_free_space_of_both(one: tuple[Path, int, str], other: tuple[Path, int, str], what: str) -> None:
    """Checks that two folders have room, which may lie on one disk.

    Args:
        one: Folder, bytes that go there, and the environment variable that moves it elsewhere.
        other: The same of the other.
        what: What they are, for the sentence.

    Raises:
        ValueError: If they do not fit.
    """
    if _existing(one[0]).stat().st_dev == _existing(other[0]).stat().st_dev:
        check_free_space(one[0], one[1] + other[1], what, variable=f"{one[2]} or {other[2]}")
        return
    for folder, num_bytes, variable in (one, other):
        check_free_space(folder, num_bytes, what, variable=variable)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"
