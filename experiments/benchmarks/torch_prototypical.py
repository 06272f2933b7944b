"""The training step of Prototypical Networks in PyTorch, written as one would with ``torch.nn``."""
# PyTorch is an extra, so the type checker may not find it.
# pyright: reportMissingImports=false

import time
from typing import Any

import torch
import torch.nn.functional as F

from experiments.benchmarks.torch_programs import NOT_COMPILED, to_tensors, to_weights, wait
from experiments.benchmarks.workload import LAYERS, Arrays, Compilation, Program, Weights, Workload

MOMENTUM = 0.1
"""How much of a batch's statistics the running ones take: PyTorch's default, metajax's too."""

LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}
"""Flax's names of leaves, in PyTorch's words."""


def network(workload: Workload, weights: Weights, device: str) -> torch.nn.Sequential:
    """Four blocks of convolution, batch normalisation, ReLU and max-pooling."""
    layers, channels = torch.nn.Sequential(), workload.channels
    for i in range(LAYERS):
        layers.add_module(f"conv_{i}", torch.nn.Conv2d(channels, workload.features, 3, padding=1))
        norm = torch.nn.BatchNorm2d(workload.features, eps=workload.norm_epsilon, momentum=MOMENTUM)
        layers.add_module(f"norm_{i}", norm)
        layers.add_module(f"relu_{i}", torch.nn.ReLU(inplace=True))
        layers.add_module(f"pool_{i}", torch.nn.MaxPool2d(2))
        channels = workload.features
    parameters = {_parameter(name): value for name, value in to_tensors(weights).items()}
    dtype = next(iter(parameters.values())).dtype
    layers.load_state_dict(parameters, strict=False)  # all but the running statistics
    return layers.to(device, dtype)


def _parameter(name: str) -> str:
    module, leaf = name.split("/")
    return f"{module}.{LEAVES[leaf]}"


def program(
    workload: Workload,
    weights: Weights,
    arrays: Arrays,
    *,
    channels_last: bool,
    compiled: bool,
    device: str = "cpu",
) -> Program:
    """The step in one of PyTorch's forms.

    Args:
        workload: the sizes.
        weights: of the convolutions and normalisations, in Flax's layout.
        arrays: one episode, examples in the order of their classes.
        channels_last: whether activations lie in memory with their channels last.
        compiled: whether ``torch.compile`` compiles network and loss.
        device: where it runs.
    """
    layout = torch.channels_last if channels_last else torch.contiguous_format
    images = [
        torch.from_numpy(array[0]).to(device).permute(0, 3, 1, 2).contiguous(memory_format=layout)
        for array in (arrays.support_inputs, arrays.query_inputs)
    ]
    targets = torch.from_numpy(arrays.query_targets[0]).to(device).long()
    n_support = len(images[0])

    def loss_fn(model: torch.nn.Module) -> torch.Tensor:
        features = model(torch.cat(images)).flatten(1)
        support, query = features[:n_support], features[n_support:]
        prototypes = support.reshape(workload.n_way, workload.k_shot, -1).mean(dim=1)
        distances = ((query[:, None] - prototypes[None]) ** 2).sum(dim=-1)
        return F.cross_entropy(-distances, targets)

    if compiled:
        loss_fn = torch.compile(loss_fn)

    def start() -> torch.nn.Sequential:
        model = network(workload, weights, device)
        for parameter in model.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=layout)
        return model

    def gradient() -> tuple[Weights, float]:
        model = start()
        loss = loss_fn(model)
        loss.backward()
        grads = {
            name: value.grad
            for name, value in model.named_parameters()
            if value.grad is not None  # never; for the type checker
        }
        return to_weights({name: grads[_parameter(name)] for name in weights}), loss.item()

    def compile_it() -> Compilation:
        if not compiled:
            return NOT_COMPILED
        torch.compiler.config.force_disable_caches = True  # what compiling takes is measured
        before = time.perf_counter()
        step(init())
        return Compilation(time.perf_counter() - before, None)

    def init() -> Any:
        model = start()
        return model, torch.optim.Adam(model.parameters(), lr=workload.outer_rate)

    def step(state: Any) -> Any:
        model, optimizer = state
        optimizer.zero_grad()
        loss_fn(model).backward()
        optimizer.step()
        wait(device)
        return state

    name = "PyTorch, torch.compile" if compiled else "PyTorch"
    return Program(
        f"{name}, channels {'last' if channels_last else 'first'}", gradient, compile_it, init, step
    )
