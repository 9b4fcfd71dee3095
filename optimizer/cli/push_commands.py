"""The command push: an exported merge goes to the Hugging Face hub."""

import sys
from pathlib import Path

from optimizer.cli.read_commands import print_json


def push(
    directory: Path,
    repo_id: str,
    *,
    public: bool,
    revision: str | None,
    message: str | None,
    create_pr: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Check an exported directory, upload it, and print where it is."""
    from optimizer.publish.push import Destination
    from optimizer.publish.push import push as upload_to_hub
    from optimizer.publish.push_check import check_upload

    destination = Destination(repo_id, public, revision, message, create_pr)
    destination.check()
    upload = check_upload(directory)
    for name in upload.left_out:
        sys.stderr.write(f"note: {name} stays here: it is no file of a model\n")
    if public and upload.private_paths:
        places = ", ".join(upload.private_paths[:5])
        sys.stderr.write(f"note: recipe.json will show where things are here: {places}\n")
    record: dict[str, object] = {"files": list(upload.files), "size_bytes": upload.size_bytes}
    if not dry_run:
        done = upload_to_hub(upload, destination)
        record |= {"repo_id": done.repo_id, "url": done.url, "commit_url": done.commit_url}
    if as_json:
        print_json(record)
    elif dry_run:
        sys.stdout.write("".join(f"{name}\n" for name in upload.files))
    else:
        sys.stdout.write(f"{record['commit_url'] if create_pr else record['url']}\n")
