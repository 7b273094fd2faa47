"""Pushing a trained model to the Hub; without a network, writing down what would have been pushed."""

import json
import logging
import os
from pathlib import Path

logger = logging.getLogger(__name__)

NOT_PUSHED = ("checkpoint-*", "runs/*", "training_args.bin", "hub_upload.json")
MANIFEST = "hub_upload.json"


def push_folder(folder: Path, repository: str) -> bool:
    """
    Upload `folder` (model, processor, code, card; no checkpoints) to `repository` on the Hub.

    Returns:
        Whether it was uploaded. Offline, `hub_upload.json` in the folder lists what would have been, with sizes.
    """
    files = files_to_push(folder)
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("0", "", "false"):
        return _write_manifest(folder, repository, files, "HF_HUB_OFFLINE is set")
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        url = api.create_repo(repository, exist_ok=True)
        api.upload_folder(
            repo_id=url.repo_id, folder_path=folder, allow_patterns=[str(path.relative_to(folder)) for path in files]
        )
    except Exception as error:  # each version of the client raises its transport's own errors; nothing is lost here
        return _write_manifest(folder, repository, files, f"{type(error).__name__}: {error}")
    logger.info("Pushed %d files to %s.", len(files), url)
    return True


def files_to_push(folder: Path) -> list[Path]:
    """Every file below `folder` that belongs to the model's repository."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return [path for path in files if not any(_fits(path.relative_to(folder), pattern) for pattern in NOT_PUSHED)]


def _fits(path: Path, pattern: str) -> bool:
    """Whether a relative path is the pattern's file, or lies below its folder."""
    is_below = len(path.parts) > 1 and Path(path.parts[0]).match(pattern.split("/")[0])
    return is_below or path.match(pattern)


def _write_manifest(folder: Path, repository: str, files: list[Path], reason: str) -> bool:
    content = {
        "repository": repository,
        "reason": reason,
        "files": {str(path.relative_to(folder)): path.stat().st_size for path in files},
    }
    (folder / MANIFEST).write_text(json.dumps(content, indent=2))
    logger.warning("Not pushed to %s (%s); %s lists what would be.", repository, reason, folder / MANIFEST)
    return False
