"""Every fuzz target for a share of the time: `make fuzz MINUTES=5`, or

    python tests/fuzz/fuzzing.py [--minutes 5] [--seed 0] [--only words results]

Prints a table of outcomes and ends with 1 if anything was found: an exception other than a ValueError or OSError that
names its input, a hang, a file left behind, a result that differs from the plain post-processing beyond ties.
"""

import argparse
import faulthandler
import json
import logging
import resource
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzz.fuzz_checkpoints import CHECKPOINTS, DICTIONARIES
from fuzz.fuzz_files import ANNOTATION_FILES, MAT_FILES, MERGED_FILES, RECIPES, VOCABULARIES
from fuzz.fuzz_pictures import PICTURES
from fuzz.fuzz_results import RESULTS
from fuzz.fuzz_words import WORDS
from fuzz.targets import Target, run_target
from transformers.utils import logging as transformers_logging

logger = logging.getLogger("fuzz")

# Target -> its share of the time.
TARGETS: dict[Target, int] = {
    PICTURES: 3,
    WORDS: 2,
    CHECKPOINTS: 3,
    DICTIONARIES: 2,
    VOCABULARIES: 1,
    RECIPES: 1,
    ANNOTATION_FILES: 1,
    MAT_FILES: 1,
    MERGED_FILES: 1,
    RESULTS: 4,
}
MOST_MEMORY = 24 << 30  # of addresses; what asks for more gets a MemoryError, which is a finding


def run_all(seconds: float, seed: int, only: list[str] | None = None) -> dict[str, Counter]:
    """Outcomes of every target, or of those in `only`."""
    targets = {target: share for target, share in TARGETS.items() if not only or target.name in only}
    results = {}
    for target, share in targets.items():
        results[target.name] = run_target(target, seconds * share / sum(targets.values()), seed)
        logger.info("%-13s %s", target.name, in_words(results[target.name]))
    return results


def in_words(counts: Counter) -> str:
    outcomes = {name: count for name, count in sorted(counts.items()) if name != "slowest_ms"}
    shown = ", ".join(f"{count:,} {name}" for name, count in outcomes.items())
    return f"{sum(outcomes.values()):>8,} cases: {shown}; slowest {counts['slowest_ms'] / 1000:.2f} s"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, help="default: the clock; a run with a seed tries the same cases again")
    parser.add_argument("--only", nargs="+", choices=[target.name for target in TARGETS], help="these targets alone")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)  # decoders write to stderr
    transformers_logging.set_verbosity_error()
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, resource.RLIM_INFINITY))
    seed = int(time.time()) if options.seed is None else options.seed
    logger.info("seed %d, %g minutes", seed, options.minutes)
    results = run_all(60 * options.minutes, seed, options.only)
    found = sum(counts["FOUND"] for counts in results.values())
    cases = sum(count for counts in results.values() for name, count in counts.items() if name != "slowest_ms")
    logger.info("%s", json.dumps({"cases": cases, "found": found, "seed": seed, "minutes": options.minutes}))
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
