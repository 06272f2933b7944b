"""Low-rank adaptation by peft, one task after another."""

# PyTorch, transformers and peft are installed for tests and benchmarks alone.
# pyright: reportMissingImports=false

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def adapter(
    folder: Path, tokens: np.ndarray, mask: np.ndarray, *, steps: int, rate: float
) -> Callable[[int], np.ndarray]:
    """``adapt(threads) -> losses [tasks, steps]``, before each step of each task.

    Args:
        folder: holds a checkpoint in ``base`` and an adapter in ``adapter``, at whose factors each
            task starts.
        tokens: integers ``[tasks, sequences, length + 1]``.
        mask: which of a task's tokens the loss is on, ``[sequences, length + 1]``.
        steps: Adam steps of a task.
        rate: Adam's.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import peft
        import torch
        import transformers
    base: Any = transformers.AutoModelForCausalLM.from_pretrained(folder / "base")
    model: Any = peft.PeftModel.from_pretrained(base, folder / "adapter", is_trainable=True)
    model.train()
    factors = [parameter for parameter in model.parameters() if parameter.requires_grad]
    initial = [parameter.detach().clone() for parameter in factors]
    # The loss leaves -100 out, as a data collator's labels do.
    labels = torch.tensor(np.where(mask, tokens, -100).astype(np.int64))
    tasks = torch.tensor(tokens.astype(np.int64))

    def one_task(task: Any, label: Any) -> Any:
        with torch.no_grad():
            for parameter, value in zip(factors, initial, strict=True):
                parameter.copy_(value)
        optimizer = torch.optim.Adam(factors, lr=rate, fused=True)
        losses = []
        for _ in range(steps):
            logits = model(input_ids=task[:, :-1], use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), label[:, 1:].flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        return torch.stack(losses)

    def adapt(threads: int) -> np.ndarray:
        torch.set_num_threads(threads)
        return torch.stack([one_task(*task) for task in zip(tasks, labels, strict=True)]).numpy()

    return adapt
