"""What test_lost_processes.py runs: processes that meet, and exchange numbers until one is lost."""

import sys
import time

import numpy as np
from jax.experimental import multihost_utils

from experiments import common
from experiments.common import partners, processes


def main(coordinator, count, index):
    config = common.DistributedConfig(
        steps=1,
        distributed=True,
        coordinator=coordinator,
        processes=int(count),
        process_id=int(index),
    )
    try:
        common.connect(config)
    except common.RunError as error:
        print(f"process {index}: error: {error}", file=sys.stderr)
        sys.exit(2)
    print("met", flush=True)
    with processes.ending_together():
        for number in range(10_000):
            multihost_utils.process_allgather(np.int32(number))
            time.sleep(0.1)


if __name__ == "__main__":
    partners.MEETING, partners.SILENCE, partners.BEAT = map(float, sys.argv[4:7])
    main(*sys.argv[1:4])
