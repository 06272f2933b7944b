"""What test_lost_processes.py runs: processes that meet, and exchange numbers until one is lost."""

import sys
import time

import numpy as np
from jax.experimental import multihost_utils

from experiments import common
from experiments.common import partners, processes

partners.MEETING, partners.SILENCE, partners.BEAT = (float(word) for word in sys.argv[4:7])
coordinator, count, index = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
config = common.DistributedConfig(
    steps=1, distributed=True, coordinator=coordinator, processes=count, process_id=index
)


def main():
    common.connect(config)
    print("met", flush=True)
    with processes.ending_together():
        for number in range(10_000):
            multihost_utils.process_allgather(np.int32(number))
            time.sleep(0.1)


try:
    main()
except common.RunError as error:
    print(f"process {index}: error: {error}", file=sys.stderr)
    sys.exit(2)
