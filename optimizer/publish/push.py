"""Uploading an exported merge to the Hugging Face hub; start at :func:`push`.

``optimizer.publish.push_check`` says which files go there. The hub's own client uploads: large
files in its own way, and only what the hub does not have yet, so that an upload that broke off goes
on.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from configs.errors import ConfigError, HubError, Problem
from optimizer.hub_errors import unreachable_error
from optimizer.publish.push_check import Upload

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

_MAIN = "main"


@dataclass(frozen=True, slots=True)
class Destination:
    """Where and how a merge is published.

    Attributes:
        repo_id: ``name`` or ``owner/name``; without an owner it is the token's.
        public: Whether everybody may see a repository that is made for it, or that exists.
        revision: Branch, made where it is missing; None is the main one.
        message: Of the commit; None says which merge it is.
        create_pr: Whether to propose the files instead of committing them.
    """

    repo_id: str
    public: bool = False
    revision: str | None = None
    message: str | None = None
    create_pr: bool = False

    def check(self) -> None:
        """Refuse what no hub accepts.

        Raises:
            ConfigError: A name is no name of a repository, or options exclude each other.
        """
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils._validators import validate_repo_id

        problems = []
        try:
            validate_repo_id(self.repo_id)
        except HFValidationError:
            message = f"`{self.repo_id}` is no name of a repository; it is OWNER/NAME or NAME"
            problems.append(Problem("REPO_ID", message))
        if self.create_pr and self.revision not in (None, _MAIN):
            message = "a pull request goes to the main branch; leave --revision out"
            problems.append(Problem("--create-pr", message))
        if problems:
            raise ConfigError("the command line cannot be read", problems)


@dataclass(frozen=True, slots=True)
class Pushed:
    """What came of it: addresses of the repository and of the commit or pull request."""

    repo_id: str
    url: str
    commit_url: str


def push(upload: Upload, destination: Destination) -> Pushed:
    """Upload an exported merge.

    Args:
        upload: From ``optimizer.publish.push_check.check_upload``.
        destination: Where.

    Raises:
        ConfigError: The destination cannot be.
        HubError: There is no token, the hub refuses, or is out of reach.
    """
    destination.check()
    api = _client()
    with _explained(destination.repo_id, api.endpoint):
        owner = str(api.whoami()["name"])
        repo_id = destination.repo_id
        repo_id = repo_id if "/" in repo_id else f"{owner}/{repo_id}"
        _refuse_public(api, repo_id, destination)
        url = api.create_repo(repo_id, private=not destination.public, exist_ok=True)
        if destination.revision not in (None, _MAIN):
            api.create_branch(repo_id, branch=str(destination.revision), exist_ok=True)
        done = api.upload_folder(
            repo_id=repo_id,
            folder_path=upload.directory,
            # Names hold no special characters (``push_check``), so each matches itself alone.
            allow_patterns=list(upload.files),
            commit_message=destination.message
            or f"Upload merge {upload.recipe_id[:10]} with mergefront",
            revision=destination.revision,
            create_pr=destination.create_pr,
        )
    return Pushed(repo_id, str(url), str(done.pr_url or done.commit_url))


def _client() -> "HfApi":
    """Return the hub's client, with a token.

    Raises:
        HubError: There is none, or the hub must not be asked.
    """
    from huggingface_hub import HfApi, constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise HubError(
            "offline mode is on, so nothing can be uploaded; unset HF_HUB_OFFLINE"
            + (" and TRANSFORMERS_OFFLINE" if os.environ.get("TRANSFORMERS_OFFLINE") else "")
        )
    token = get_token()
    if token is None:
        raise HubError(
            "no token of the Hugging Face hub was found; run `hf auth login`, or set HF_TOKEN to "
            "one that may write (https://huggingface.co/settings/tokens)"
        )
    return HfApi(token=token)


def _refuse_public(api: "HfApi", repo_id: str, destination: Destination) -> None:
    """Refuse to put files where everybody sees them, unless that was asked for."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        is_private = bool(api.repo_info(repo_id).private)
    except RepositoryNotFoundError:
        return
    if not is_private and not destination.public:
        raise HubError(
            f"{repo_id} exists and is public: everybody would see this merge. Say --public if "
            "that is meant, or choose another name",
            repo_id=repo_id,
        )


@contextmanager
def _explained(repo_id: str, endpoint: str) -> Iterator[None]:
    """Turn what the client raises into errors that say what to do."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HfHubHTTPError as error:
        raise HubError(_refusal(error, repo_id), repo_id=repo_id) from error
    except unreachable_error() as error:
        raise HubError(
            f"the hub at {endpoint} cannot be reached ({type(error).__name__}: {error}); check "
            "the network and HF_ENDPOINT, and try again",
            repo_id=repo_id,
        ) from error
    except (OSError, RuntimeError, ValueError) as error:
        said = [str(found).strip().splitlines()[0] for found in (error, error.__cause__) if found]
        raise HubError(
            f"the upload to {repo_id} failed: {' '.join(said)}; push again, what is there is not "
            "sent twice",
            repo_id=repo_id,
        ) from error


def _refusal(error: "HfHubHTTPError", repo_id: str) -> str:
    status = error.response.status_code
    said = str(error.server_message or error).strip().splitlines()[0]
    if status == 401:
        return f"the hub refuses the token ({said}); make a new one, and run `hf auth login`"
    if status == 403:
        return (
            f"the hub refuses to let this token write to {repo_id} ({said}); take one that may "
            "write there, or propose the files with --create-pr"
        )
    if status == 404:
        return f"{repo_id} was not found ({said}); check the name and the token's rights"
    if status >= 500:
        return f"the hub failed with status {status} ({said}); push again later"
    return f"the hub refuses the upload to {repo_id} with status {status} ({said})"
