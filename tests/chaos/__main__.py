"""python -m tests.chaos: the nightly campaign. Exits with 1 where the promise was not kept."""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.chaos.campaign import Findings, run
from tests.chaos.drill import Stage, Stuck
from tests.chaos.moments import MOMENTS


def drill(folder: Path, times: int) -> dict[str, Any]:
    """Every moment, the given number of times, each time one occurrence later; and what is wrong then."""
    stuck: list[str] = []
    stage = Stage(folder / "data")
    with stage.live:
        with stage.live.kept_up():
            for moment in MOMENTS:
                for passes in range(times if moment.scene != "first start" else 0):
                    try:
                        stage.play(moment, passes)
                    except Stuck as error:
                        stuck.append(f"{moment.side}: {moment.name}: {error}")
        stage.live.terminate()
    findings = stage.findings()
    return {"moments": len(MOMENTS) - 1, "jobs": len(stage.expected), "stuck": stuck, "findings": vars(findings)}


def main() -> None:
    """Kills at random, then kills at every moment."""
    parser = argparse.ArgumentParser(description="Kill server and worker, at random and at every moment, and count.")
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=50, help="at random")
    parser.add_argument("--times", type=int, default=2, help="that each moment is played; 0 for none")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, default=Path("runs/chaos.log"), help="what the servers write")
    given = parser.parse_args()
    given.log.parent.mkdir(parents=True, exist_ok=True)
    size = {"num_jobs": given.jobs, "num_kills": given.kills, "steps": given.steps, "seed": given.seed}
    with tempfile.TemporaryDirectory() as folder:
        kept = _told("at random", run(Path(folder, "random"), log=given.log, **size))
        if given.times:
            kept &= _told("at every moment", drill(Path(folder), given.times))
    sys.exit(not kept)


def _told(name: str, report: Mapping[str, Any]) -> bool:
    """Prints a report; says whether the promise was kept."""
    print(json.dumps({name: report}, indent=2), flush=True)
    return not Findings(**report["findings"]).any() and not report.get("stuck")


if __name__ == "__main__":
    main()
