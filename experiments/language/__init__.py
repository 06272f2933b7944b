"""Language models: training, and adaptation to tasks."""
