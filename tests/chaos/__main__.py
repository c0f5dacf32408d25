"""python -m tests.chaos --jobs 1000 --kills 50"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from tests.chaos.campaign import Findings, run


def main() -> None:
    """Run a campaign of any size; exits with 1 where the promise was not kept."""
    parser = argparse.ArgumentParser(description="Kill server and worker at random, and count what is wrong after.")
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = run(Path(folder), num_jobs=given.jobs, num_kills=given.kills, steps=given.steps, seed=given.seed)
    print(json.dumps(report, indent=2))
    sys.exit(Findings(**report["findings"]).any())


if __name__ == "__main__":
    main()
