"""``python -m experiments.evolution.programs``."""

from experiments import common
from experiments.evolution.programs.train import main

if __name__ == "__main__":
    common.guard(main)
