"""A driver that waits in ``next_outcome``, to be interrupted or killed.

Arguments: how many seconds its evaluations take, and the Ray to join (none: one of its own).
Prints one JSON line once its workers are busy: every process below it, and its workers' pids.
"""

import json
import sys

import psutil

from tests.contract.light_runners import LightRunner, light_spec, request
from tests.contract.pool_contract import warm_up
from workers.ray_pool import RayPool


def main() -> None:
    seconds, *address = sys.argv[1:]
    with RayPool(light_spec(count=2, address=next(iter(address), None)), LightRunner) as pool:
        warm_up(pool)
        for candidate in range(2):
            pool.submit(request(candidate, f"sleep {seconds}"))
        below = [process.pid for process in psutil.Process().children(recursive=True)]
        print(json.dumps({"below": below, "workers": pool.worker_pids()}), flush=True)
        while pool.num_pending:
            pool.next_outcome()


if __name__ == "__main__":
    main()
