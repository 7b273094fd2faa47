"""Compare our model with the numbers recorded from the original code: `python tests/check_reference.py FOLDER`.

FOLDER is laid out like the reference data (`tiny/`, `functions/`, `postprocess/`, `text/`, `losses/`, `metrics/`,
`maft_v1/`); any file-name prefix, configuration and seed. One line a golden with the largest difference of each
recorded tensor against its tolerance; the last line counts files and tensors and gives the worst ratio. The exit
code is 1 if a tolerance is exceeded, a golden gave nothing to compare (its check is gone, or its words need the whole
vocabulary of CLIP, see `text_tools.py`), nothing was found, or an unknown file lies there.
"""

import argparse
import importlib
import sys
from fnmatch import fnmatch
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from reference_tools import Comparison
from text_tools import UnknownWords

# Pattern of a golden (folder/name) -> "module:function"; the function takes the path and returns comparisons.
CHECKS = {
    "tiny/*_single.npz": "reference_tiny:check_inference",
    "tiny/*_batch.npz": "reference_tiny:check_inference",
    "tiny/*_train.npz": "reference_train:check_training",
    "functions/*functions.npz": "reference_functions:check_functions",
    "postprocess/*.npz": "reference_postprocess:check_postprocess",
    "text/*text.json": "reference_text:check_text",
    "losses/*ma_loss.npz": "reference_losses:check_mask_aware",
    "losses/*representation_compensation.npz": "reference_losses:check_compensation",
    "losses/*criterion.npz": "reference_losses:check_criterion",
    "metrics/*semseg_*.npz": "reference_metrics:check_mean_iou",
    "metrics/*pq_*.npz": "reference_metrics:check_panoptic_quality",
    "maft_v1/*ip_clip.npz": "reference_maft:check_ip_clip",
    "maft_v1/*masked_forward.npz": "reference_train:check_maft",
    "maft_v1/*proposer.npz": "reference_maft_proposer:check_proposer",
    "maft_v1/*interaction_head.npz": "reference_maft_proposer:check_interaction_head",
}
# Read by the checks above, or of no concern to the model.
COMPANIONS = (
    "*README.md",
    "*MANIFEST.json",
    "*weights_check.json",
    "tiny/*_config.json",
    "tiny/*_keys.json",
    "tiny/*_train_gradnorms.json",
    "maft_v1/*_config.json",
    "metrics/*.json",
    "keys/*.json*",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="reference data, laid out like ../shared/reference")
    parser.add_argument("--only", default="*", help="check only goldens whose folder/name fits this pattern")
    arguments = parser.parse_args()
    if not arguments.folder.is_dir():
        parser.error(f"{arguments.folder} is not a folder")
    return check_folder(arguments.folder, arguments.only)


def check_folder(folder: Path, only: str = "*") -> int:
    """Check every golden below `folder`, print the lines, return the exit code."""
    comparisons, files, num_failures = [], 0, 0
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        target = next((value for pattern, value in CHECKS.items() if fnmatch(name, pattern)), None)
        if target and fnmatch(name, only):
            found, reason = _run(target, path)
            files += 1
            comparisons += found
            num_failures += not found
            print(_line(name, found, reason), flush=True)
        elif not target and not any(fnmatch(name, pattern) for pattern in COMPANIONS):
            num_failures += 1
            print(f"UNKNOWN      {name}")
    worst = max(comparisons, key=lambda c: c.ratio, default=None)
    if worst is None:
        print("nothing was checked")
        return 1
    print(f"{files} files, {len(comparisons)} tensors, worst ratio {worst.ratio:.3g} ({worst.name})")
    return int(worst.ratio > 1 or num_failures > 0)


def _run(target: str, path: Path) -> tuple[list[Comparison], str]:
    """The golden's comparisons; where there are none, the reason."""
    module, function = target.split(":")
    if not (Path(__file__).parent / f"{module}.py").exists():
        return [], f"its check, {module}.py, is gone"
    try:
        return getattr(importlib.import_module(module), function)(path), "nothing compared"
    except UnknownWords as error:
        return [], str(error)


def _line(name: str, comparisons: list[Comparison], reason: str) -> str:
    failed = [c for c in comparisons if c.ratio > 1]
    verdict = "FAIL" if failed or not comparisons else "ok"
    figures = ", ".join(f"{c.name} {c.difference:.1e}/{c.tolerance:.1e}" for c in comparisons)
    return f"{verdict:<12} {name}: {figures or reason}"


if __name__ == "__main__":
    sys.exit(main())
