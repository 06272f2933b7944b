"""The meta-step in PyTorch: ``torch.func`` over all tasks at once, and the library ``higher``."""
# PyTorch and higher are an extra, so the type checker may not find them.
# pyright: reportMissingImports=false

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from experiments.benchmarks.workload import (
    LAYERS,
    NORM_EPSILON,
    Arrays,
    Program,
    Weights,
    Workload,
)

TensorDict = dict[str, torch.Tensor]


def use_threads(number: int) -> None:
    """Lets PyTorch use this many threads inside an operation, for the whole process."""
    torch.set_num_threads(number)


def same_padding(x: torch.Tensor) -> torch.Tensor:
    """Pads ``[images, channels, height, width]`` as XLA's SAME does for a 3×3 kernel of stride 2.

    The total is what makes the output ceil(size / 2); an odd total has its extra row at the end.
    """
    padding = []
    for size in (x.shape[-1], x.shape[-2]):
        total = max((-(-size // 2) - 1) * 2 + 3 - size, 0)
        padding += [total // 2, total - total // 2]
    return F.pad(x, padding)


def batch_norm(x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Normalises by the batch's own mean and variance, then shifts."""
    variance, mean = torch.var_mean(x, dim=(0, 2, 3), keepdim=True, correction=0)
    return (x - mean) * torch.rsqrt(variance + NORM_EPSILON) + shift[:, None, None]


def forward(params: TensorDict, x: torch.Tensor) -> torch.Tensor:
    """Logits ``[images, n_way]`` of images ``[images, 1, height, width]``."""
    for layer in range(LAYERS):
        kernel, bias = params[f"conv_{layer}/kernel"], params[f"conv_{layer}/bias"]
        x = F.conv2d(same_padding(x), kernel, bias, stride=2)
        x = F.relu(batch_norm(x, params[f"norm_{layer}/bias"]))
    return F.linear(x.mean(dim=(2, 3)), params["head/kernel"], params["head/bias"])


def to_tensors(weights: Weights) -> TensorDict:
    """The weights in PyTorch's layout: convolutions [out, in, 3, 3], the head [out, in]."""
    order = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
    return {
        name: torch.from_numpy(np.ascontiguousarray(value.transpose(order[value.ndim])))
        for name, value in weights.items()
    }


def to_weights(tensors: TensorDict) -> Weights:
    """``to_tensors`` undone."""
    order = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}
    return {
        name: value.detach().numpy().transpose(order[value.ndim]) for name, value in tensors.items()
    }


def _episodes(arrays: Arrays) -> list[torch.Tensor]:
    """Images as [tasks, images, 1, height, width], targets as int64 (cross-entropy asks for it)."""
    tensors = []
    for array in arrays:
        tensor = torch.from_numpy(array)
        is_image = array.ndim == 5
        tensors.append(tensor.permute(0, 1, 4, 2, 3).contiguous() if is_image else tensor.long())
    return tensors


def functional_program(workload: Workload, weights: Weights, arrays: Arrays) -> Program:
    """``torch.func``: an inner ``grad`` for each task under ``vmap``, autograd around all of it.

    Faster than taking the outer gradient by ``torch.func`` too, or a task's own under ``vmap``.
    """
    from torch.func import grad, vmap

    episodes = _episodes(arrays)
    start = to_tensors(weights)

    def loss_fn(adapted, shifts, inputs, targets):
        return F.cross_entropy(forward({**adapted, **shifts}, inputs), targets)

    def task_loss(params, support_inputs, support_targets, query_inputs, query_targets):
        shifts = {name: value for name, value in params.items() if name.startswith("norm_")}
        adapted = {name: value for name, value in params.items() if name not in shifts}
        for _ in range(workload.inner_steps):
            inner = grad(loss_fn)(adapted, shifts, support_inputs, support_targets)
            adapted = {name: adapted[name] - workload.inner_rate * inner[name] for name in adapted}
        return loss_fn(adapted, shifts, query_inputs, query_targets)

    def meta_loss(params: TensorDict) -> torch.Tensor:
        return vmap(task_loss, in_dims=(None, 0, 0, 0, 0))(params, *episodes).mean()

    def gradient() -> tuple[Weights, float]:
        params = {name: value.clone().requires_grad_() for name, value in start.items()}
        loss = meta_loss(params)
        gradients = torch.autograd.grad(loss, list(params.values()))
        return to_weights(dict(zip(params, gradients, strict=True))), loss.item()

    def init() -> Any:
        params = {name: value.clone().requires_grad_() for name, value in start.items()}
        return params, torch.optim.Adam(params.values(), lr=workload.outer_rate)

    def step(state: Any) -> Any:
        params, optimizer = state
        optimizer.zero_grad()
        meta_loss(params).backward()
        optimizer.step()
        return state

    return Program("PyTorch, torch.func vmap", gradient, init, step, None, None)


class Conv4(torch.nn.Module):
    """The network as a module, which ``higher`` needs; its parameters are a flat list."""

    def __init__(self, tensors: TensorDict) -> None:
        super().__init__()
        self.names = list(tensors)
        self.values = torch.nn.ParameterList([value.clone() for value in tensors.values()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``[images, n_way]``."""
        return forward(dict(zip(self.names, self.values, strict=True)), x)


def higher_program(workload: Workload, weights: Weights, arrays: Arrays) -> Program:
    """The library ``higher``: a task at a time, a differentiable SGD, gradients accumulated."""
    import higher

    episodes = _episodes(arrays)
    start = to_tensors(weights)

    def accumulate(model: Conv4) -> float:
        """Adds the meta-gradient to the parameters' ``grad``; returns the mean query loss."""
        adapted = [
            value
            for name, value in zip(model.names, model.values, strict=True)
            if not name.startswith("norm_")
        ]
        inner_optimizer = torch.optim.SGD(adapted, lr=workload.inner_rate)
        total = 0.0
        for support_inputs, support_targets, query_inputs, query_targets in zip(
            *episodes, strict=True
        ):
            with higher.innerloop_ctx(model, inner_optimizer, copy_initial_weights=False) as (
                functional,
                differentiable,
            ):
                for _ in range(workload.inner_steps):
                    differentiable.step(
                        F.cross_entropy(functional(support_inputs), support_targets)
                    )
                loss = F.cross_entropy(functional(query_inputs), query_targets) / workload.tasks
                loss.backward()
                total += loss.item()
        return total

    def gradient() -> tuple[Weights, float]:
        model = Conv4(start)
        loss = accumulate(model)
        grads = {}
        for name, value in zip(model.names, model.values, strict=True):
            grads[name] = torch.zeros_like(value) if value.grad is None else value.grad
        return to_weights(grads), loss

    def init() -> Any:
        model = Conv4(start)
        return model, torch.optim.Adam(model.parameters(), lr=workload.outer_rate)

    def step(state: Any) -> Any:
        model, optimizer = state
        optimizer.zero_grad()
        accumulate(model)
        optimizer.step()
        return state

    return Program("PyTorch, higher", gradient, init, step, None, None)
