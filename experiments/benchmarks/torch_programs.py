"""The meta-step in PyTorch: ``torch.func`` over all tasks at once, and four libraries.

``higher``, TorchOpt and iteryne compute a task at a time, as their own MAML examples do;
parallel-metalearn computes all of them under ``vmap``.
"""
# PyTorch and its libraries are an extra, so the type checker may not find them.
# pyright: reportMissingImports=false

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from experiments.benchmarks.workload import (
    HIGHER,
    ITERYNE,
    LAYERS,
    MLP_WIDTHS,
    PARALLEL_METALEARN,
    TORCH_FUNC,
    TORCHOPT,
    Arrays,
    Compilation,
    Program,
    Weights,
    Workload,
    adapts,
)

TensorDict = dict[str, torch.Tensor]

NOT_COMPILED = Compilation(None, None)


def use_threads(number: int) -> None:
    """Lets PyTorch use this many threads inside an operation, for the whole process."""
    torch.set_num_threads(number)


def use_tf32(allowed: bool) -> None:
    """Whether a GPU's products may round their operands to TF32, for the whole process."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def same_padding(x: torch.Tensor) -> torch.Tensor:
    """Pads ``[images, channels, height, width]`` as XLA's SAME does for a 3×3 kernel of stride 2.

    The total is what makes the output ceil(size / 2); an odd total has its extra row at the end.
    """
    padding = []
    for size in (x.shape[-1], x.shape[-2]):
        total = max((-(-size // 2) - 1) * 2 + 3 - size, 0)
        padding += [total // 2, total - total // 2]
    return F.pad(x, padding)


def batch_norm(x: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Normalises by the batch's own mean and variance."""
    variance, mean = torch.var_mean(x, dim=(0, 2, 3), keepdim=True, correction=0)
    return (x - mean) * torch.rsqrt(variance + epsilon)


def forward(workload: Workload, params: TensorDict, x: torch.Tensor) -> torch.Tensor:
    """Logits ``[images, n_way]`` of images ``[images, channels, height, width]``."""
    if workload.form == "mlp":
        x = x.flatten(1)
        for layer in range(len(MLP_WIDTHS)):
            x = F.relu(F.linear(x, params[f"dense_{layer}/kernel"], params[f"dense_{layer}/bias"]))
        return F.linear(x, params["head/kernel"], params["head/bias"])
    for layer in range(LAYERS):
        kernel, bias = params[f"conv_{layer}/kernel"], params[f"conv_{layer}/bias"]
        if workload.form == "stride":
            x = F.conv2d(same_padding(x), kernel, bias, stride=2)
        else:
            x = F.conv2d(x, kernel, bias, padding=1)
        x = batch_norm(x, workload.norm_epsilon)
        if workload.form == "pool":
            x = x * params[f"norm_{layer}/scale"][:, None, None]
        x = F.relu(x + params[f"norm_{layer}/bias"][:, None, None])
        if workload.form == "pool":
            x = F.max_pool2d(x, 2)
    # The pooled features are flattened in Flax's order, the channels last.
    x = x.mean(dim=(2, 3)) if workload.form == "stride" else x.permute(0, 2, 3, 1).flatten(1)
    return F.linear(x, params["head/kernel"], params["head/bias"])


def to_tensors(weights: Weights, device: str = "cpu") -> TensorDict:
    """The weights in PyTorch's layout: convolutions [out, in, 3, 3], linear layers [out, in]."""
    order = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
    return {
        name: torch.from_numpy(np.ascontiguousarray(value.transpose(order[value.ndim]))).to(device)
        for name, value in weights.items()
    }


def to_weights(tensors: TensorDict) -> Weights:
    """``to_tensors`` undone."""
    order = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}
    return {
        name: value.detach().cpu().numpy().transpose(order[value.ndim])
        for name, value in tensors.items()
    }


def _episodes(arrays: Arrays, device: str) -> list[torch.Tensor]:
    """Images as [tasks, images, channels, ...], targets as int64 (cross-entropy asks for it)."""
    tensors = []
    for array in arrays:
        tensor = torch.from_numpy(array).to(device)
        is_image = array.ndim == 5
        tensors.append(tensor.permute(0, 1, 4, 2, 3).contiguous() if is_image else tensor.long())
    return tensors


def wait(device: str) -> None:
    """Returns when the device has computed all that it was asked to."""
    if device != "cpu":
        torch.cuda.synchronize()


def functional_program(
    workload: Workload, weights: Weights, arrays: Arrays, *, device: str = "cpu"
) -> Program:
    """``torch.func``: an inner ``grad`` for each task under ``vmap``, autograd around all of it.

    Faster than taking the outer gradient by ``torch.func`` too, or a task's own under ``vmap``.
    """
    from torch.func import grad, vmap

    episodes = _episodes(arrays, device)
    start = to_tensors(weights, device)

    def loss_fn(adapted, frozen, inputs, targets):
        return F.cross_entropy(forward(workload, {**adapted, **frozen}, inputs), targets)

    def task_loss(params, support_inputs, support_targets, query_inputs, query_targets):
        frozen = {name: value for name, value in params.items() if not adapts(name)}
        adapted = {name: value for name, value in params.items() if adapts(name)}
        for _ in range(workload.inner_steps):
            inner = grad(loss_fn)(adapted, frozen, support_inputs, support_targets)
            adapted = {name: adapted[name] - workload.inner_rate * inner[name] for name in adapted}
        return loss_fn(adapted, frozen, query_inputs, query_targets)

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
        wait(device)
        return state

    return Program(TORCH_FUNC, gradient, lambda: NOT_COMPILED, init, step)


class Network(torch.nn.Module):
    """The network as a module, which the libraries need; two flat lists of parameters."""

    def __init__(self, workload: Workload, tensors: TensorDict) -> None:
        super().__init__()
        self.workload = workload
        self.names = {kind: [n for n in tensors if adapts(n) == kind] for kind in (True, False)}
        of_kind = lambda kind: torch.nn.ParameterList(tensors[n].clone() for n in self.names[kind])
        self.adapted, self.frozen = of_kind(True), of_kind(False)

    def values(self) -> TensorDict:
        """The parameters by name."""
        return {
            **dict(zip(self.names[True], self.adapted, strict=True)),
            **dict(zip(self.names[False], self.frozen, strict=True)),
        }

    def gradients(self) -> Weights:
        """What ``backward`` has added to the parameters; zeros where nothing was."""
        return to_weights(
            {
                name: torch.zeros_like(value) if value.grad is None else value.grad
                for name, value in self.values().items()
            }
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``[images, n_way]``."""
        return forward(self.workload, self.values(), x)


def _library_program(
    name: str,
    workload: Workload,
    weights: Weights,
    device: str,
    accumulate: Callable[[Network], float],
) -> Program:
    """The program of a library; ``accumulate`` adds the meta-gradient to the parameters' ``grad``
    and returns the mean query loss."""
    start = to_tensors(weights, device)

    def gradient() -> tuple[Weights, float]:
        model = Network(workload, start)
        loss = accumulate(model)
        return model.gradients(), loss

    def init() -> Any:
        model = Network(workload, start)
        return model, torch.optim.Adam(model.parameters(), lr=workload.outer_rate)

    def step(state: Any) -> Any:
        model, optimizer = state
        optimizer.zero_grad()
        accumulate(model)
        optimizer.step()
        wait(device)
        return state

    return Program(name, gradient, lambda: NOT_COMPILED, init, step)


def higher_program(
    workload: Workload, weights: Weights, arrays: Arrays, *, device: str = "cpu"
) -> Program:
    """The library ``higher``: a task at a time, a differentiable SGD, gradients accumulated."""
    import higher

    episodes = _episodes(arrays, device)

    def accumulate(model: Network) -> float:
        inner_optimizer = torch.optim.SGD(model.adapted.parameters(), lr=workload.inner_rate)
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

    return _library_program(HIGHER, workload, weights, device, accumulate)


def torchopt_program(
    workload: Workload, weights: Weights, arrays: Arrays, *, device: str = "cpu"
) -> Program:
    """TorchOpt: a task at a time, its ``MetaSGD``, gradients accumulated."""
    import torchopt

    episodes = _episodes(arrays, device)

    def accumulate(model: Network) -> float:
        inner_optimizer = torchopt.MetaSGD(model.adapted, lr=workload.inner_rate)
        start = torchopt.extract_state_dict(model.adapted, by="reference")
        inner_start = torchopt.extract_state_dict(inner_optimizer, by="reference")
        total = 0.0
        for support_inputs, support_targets, query_inputs, query_targets in zip(
            *episodes, strict=True
        ):
            for _ in range(workload.inner_steps):
                inner_optimizer.step(F.cross_entropy(model(support_inputs), support_targets))
            loss = F.cross_entropy(model(query_inputs), query_targets) / workload.tasks
            loss.backward()
            total += loss.item()
            torchopt.recover_state_dict(model.adapted, start)
            torchopt.recover_state_dict(inner_optimizer, inner_start)
        return total

    return _library_program(TORCHOPT, workload, weights, device, accumulate)


def iteryne_program(
    workload: Workload, weights: Weights, arrays: Arrays, *, device: str = "cpu"
) -> Program:
    """iteryne: a task at a time, a clone of its ``MAML``, gradients accumulated."""
    import iteryne

    episodes = _episodes(arrays, device)

    def accumulate(model: Network) -> float:
        maml = iteryne.MAML(
            model,
            inner_lr=workload.inner_rate,
            adapt_names=[name for name, _ in _adapted(model)],
        )
        total = 0.0
        for support_inputs, support_targets, query_inputs, query_targets in zip(
            *episodes, strict=True
        ):
            learner = maml.clone()
            for _ in range(workload.inner_steps):
                learner.adapt(F.cross_entropy(learner(support_inputs), support_targets))
            loss = F.cross_entropy(learner(query_inputs), query_targets) / workload.tasks
            loss.backward()
            total += loss.item()
        return total

    return _library_program(ITERYNE, workload, weights, device, accumulate)


def _adapted(model: Network) -> list[tuple[str, torch.nn.Parameter]]:
    return [each for each in model.named_parameters() if each[0].startswith("adapted.")]


class FastNetwork(Network):
    """The network as parallel-metalearn asks for it."""

    def get_fast_weights(self) -> OrderedDict[str, torch.nn.Parameter]:
        """The parameters that adapt."""
        return OrderedDict(_adapted(self))

    def forward(self, x: torch.Tensor, **_: Any) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Logits ``[images, n_way]``."""
        return {"logits": super().forward(x), "buffers": {}}


def parallel_metalearn_program(
    workload: Workload, weights: Weights, arrays: Arrays, *, device: str = "cpu"
) -> Program:
    """parallel-metalearn: its ``MAML``, all tasks under ``vmap`` of PyTorch."""
    from metalearn.algorithms import MAML
    from metalearn.inner_optimizers import InnerSGD
    from metalearn.loss import CrossEntropy
    from metalearn.loss.categorical_accuracy import CategoricalAccuracy

    support_inputs, support_targets, query_inputs, query_targets = _episodes(arrays, device)
    batch = (
        support_inputs, {"labels": support_targets}, query_inputs, {"labels": query_targets},
    )  # fmt: skip
    start = to_tensors(weights, device)

    def build(optimizer: Callable[..., torch.optim.Optimizer], rate: float) -> Any:
        model = FastNetwork(workload, start)
        inner = InnerSGD(
            model.get_fast_weights(),
            inner_lr=workload.inner_rate,
            max_inner_steps=workload.inner_steps,
            learn_lr=False,
        )
        # The rate as exact as the parameters.
        exact = next(model.parameters()).dtype
        for parameter in inner.parameters():
            parameter.data = torch.full_like(parameter, workload.inner_rate, dtype=exact)
        return model, MAML(
            model=model,
            optimizer=optimizer(model.parameters(), lr=rate),
            inner_optimizer=inner,
            support_loss_fn=CrossEntropy(CategoricalAccuracy()),
            inner_steps=workload.inner_steps,
            device=torch.device(device),
        )

    def gradient() -> tuple[Weights, float]:
        model, maml = build(torch.optim.SGD, 0.0)
        loss, _ = maml.step(iter([batch]))
        return model.gradients(), loss

    def init() -> Any:
        return build(torch.optim.Adam, workload.outer_rate)[1]

    def step(maml: Any) -> Any:
        maml.step(iter([batch]))
        wait(device)
        return maml

    return Program(PARALLEL_METALEARN, gradient, lambda: NOT_COMPILED, init, step)
