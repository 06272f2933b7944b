"""``python -m experiments.evolution.strings``."""

from experiments import common
from experiments.evolution.strings.train import main

if __name__ == "__main__":
    common.guard(main)
