"""Random weights of true architectures, quickly: hundreds of millions of numbers need not be drawn one by one."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

BLOCK = 1 << 20


def fill(shapes: dict[str, torch.Size], spread: float = 0.02, seed: int = 0) -> dict[str, torch.Tensor]:
    """Half-precision tensors: norms are the identity, biases 0, the rest pieces of one block of random numbers, each
    from another place."""
    generator = torch.Generator().manual_seed(seed)
    block = (torch.randn(BLOCK, generator=generator) * spread).half()
    found = {}
    for i, (name, shape) in enumerate(shapes.items()):
        if len(shape) == 1:
            one = name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "lambda1"))
            found[name] = torch.full(shape, float(one), dtype=torch.float16)
        else:
            shifted = block.roll(7919 * i)
            found[name] = shifted.repeat(-(-shape.numel() // BLOCK))[: shape.numel()].view(shape).clone()
    return found


def write(model_class, config, path: Path, spread: float = 0.02) -> Path:
    """A transformers model's weights as path, and its config.json beside it."""
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in model_class(config).state_dict().items() if v.is_floating_point()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(fill(shapes, spread), path, metadata={"format": "pt"})
    path.with_name("config.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
    return path
