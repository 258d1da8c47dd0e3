"""The two ends of an export: what is exported of a network, and an artefact in the place of a network."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from xnext.data import Preprocessing
from xnext.deploy._runtime import Runtime

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def make_program(
    module: nn.Module, images: Tensor, dynamic_batch: bool, dynamic_size: bool
) -> torch.export.ExportedProgram:
    """Return the graph that all formats are written from.

    Args:
        module: Maps images to logits, as ``Exported``.
        images: An example [N, C, H, W], N above 1 where any number may come.
        dynamic_batch: Whether any number may come.
        dynamic_size: Whether they may have any size.
    """
    axes = ([0] if dynamic_batch else []) + ([2, 3] if dynamic_size else [])
    shapes = dict.fromkeys(axes, torch.export.Dim.DYNAMIC)
    with torch.no_grad():
        return torch.export.export(module, (images,), dynamic_shapes=(shapes,))


class Exported(nn.Module):
    """What is exported: a network and what is done to images and logits around it.

    Args:
        network: In evaluation mode, on the CPU, in float32; it is copied.
        pre: How pixels are normalised, where the graph shall do that; None: images come normalised.
        dtype: What the network computes in, fp32, bf16 or fp16; images and logits are float32.
        channels_last: Whether channels come last in memory inside.
    """

    def __init__(self, network: nn.Module, pre: Preprocessing | None, dtype: str, channels_last: bool):
        super().__init__()
        self.dtype = _DTYPES[dtype]
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.network = network.to(self.dtype).to(memory_format=self.memory_format)
        self.normalises = pre is not None
        self.mean: Tensor
        self.std: Tensor
        for name in ("mean", "std"):
            values = torch.tensor(getattr(pre, name) if pre else ()).reshape(-1, 1, 1)
            self.register_buffer(name, values)

    def forward(self, images: Tensor) -> Tensor:
        """Map images [N, C, H, W], uint8 if it normalises, else float32, to logits, float32 [N, classes]."""
        if self.normalises:
            images = (images.float() / 255 - self.mean) / self.std
        if self.memory_format is torch.channels_last:
            images = images.contiguous(memory_format=self.memory_format)
        if self.dtype is not torch.float32:
            return self.network(images.to(self.dtype)).float()
        return self.network(images)


@torch.no_grad()
def round_all(network: nn.Module, dtype: str) -> nn.Module:
    """Let a network round its weights, and what each module gives out, to a type that a CPU may lack.

    Sums are still float32, as they are where a CPU has the type.

    Args:
        network: In float32; it is changed.
        dtype: bf16 or fp16.
    """
    kind = _DTYPES[dtype]

    def rounded(_: nn.Module, __: object, output: object) -> object:
        return output.to(kind).float() if isinstance(output, Tensor) else output

    for value in network.state_dict().values():
        value.copy_(value.to(kind))
    for module in network.modules():
        module.register_forward_hook(rounded)
    return network


class Served(nn.Module):
    """An exported network in the place of one: it maps normalised images to logits.

    Args:
        runtime: What runs it.
    """

    def __init__(self, runtime: Runtime):
        super().__init__()
        self.runtime = runtime

    @property
    def preprocessing(self) -> Preprocessing:
        """What pictures are to be normalised by: where the graph does that, only scaled from 0 to 1."""
        pre = self.runtime.preprocessing
        return pre.without_normalisation() if self.runtime.artefact.include_preprocessing else pre

    def forward(self, images: Tensor) -> Tensor:
        """Map images [N, C, H, W] on the CPU to logits [N, classes]."""
        values = images.numpy()
        if self.runtime.artefact.include_preprocessing:
            values = np.rint(values * 255).astype(np.uint8)  # exact: they were whole numbers
        return torch.from_numpy(self.runtime(values))
