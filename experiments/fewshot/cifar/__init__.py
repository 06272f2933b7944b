"""Few-shot classification of CIFAR-100's classes: CIFAR-FS and FC100."""
