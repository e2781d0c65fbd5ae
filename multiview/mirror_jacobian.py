"""MIRROR's Eq. 12: the pull taken through the network, for comparison with the detached form (Eq. 14).

Eq. 12 adds s sqrt(1-abar) grad_{z_t} L to the noise prediction. In terms of the clean prediction x0(x), with x = z_t /
sqrt(abar) (what samplers with sigmas hold) and S its noise level, that moves x0 by -s S^2 J^T grad_{x0} L, where
J = dx0/dx. The detached form moves it by d = -s S^2 grad_{x0} L, so Eq. 12 is J^T d: one product of the transposed
Jacobian with whatever the detached pull does. It costs a second forward and a backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def through_network(denoise: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """(x0, J^T direction) of a differentiable denoiser at x; all of the shape of x, detached.

    denoise: x -> x0, run with gradients and outside inference mode; the caller sees to it that its weights are no
        inference tensors (ordinary_weights). Not restricted to views: any shape.
    """
    with torch.inference_mode(False), torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        clean = denoise(leaf)
        # Products with small numbers vanish in half precision, so the direction goes through at size 1.
        size = float(direction.abs().amax())
        if size == 0:
            return clean.detach(), torch.zeros_like(x)
        (product,) = torch.autograd.grad(clean, leaf, (direction.detach() / size).to(clean.dtype))
        return clean.detach(), (product * size).to(x.dtype)


@contextmanager
def ordinary_weights(network: torch.nn.Module) -> Iterator[None]:
    """Within it, parameters and buffers made in inference mode are ordinary tensors on the same memory.

    Autograd refuses to keep inference tensors. Nothing is copied or written, and the module gets its own back.
    """
    replaced = []
    try:
        with torch.inference_mode(False), torch.no_grad():
            for module in network.modules():
                for table in (module._parameters, module._buffers):
                    for name, value in table.items():
                        if value is not None and value.is_inference():
                            replaced.append((table, name, value))
                            table[name] = _alias(value)
        yield
    finally:
        for table, name, value in replaced:
            table[name] = value


def _alias(value: Tensor) -> Tensor:
    shared = torch.empty(0, dtype=value.dtype, device=value.device)
    shared.set_(value.untyped_storage(), value.storage_offset(), value.shape, value.stride())
    return torch.nn.Parameter(shared, requires_grad=False) if isinstance(value, torch.nn.Parameter) else shared


def ordinary(value):
    """The value with copies in place of inference tensors, also inside lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        return value.clone() if value.is_inference() else value
    if isinstance(value, dict):
        return {key: ordinary(v) for key, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(ordinary(v) for v in value)
    return value
