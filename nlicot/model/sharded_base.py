"""The frozen base in parts, one on each device of a machine: torch's FSDP (`fully_shard`) without its rest.

The weights of a decoder layer are gathered as they are stored, 4-bit ones as bytes, right before the layer
computes, and freed after it, in the forward and in the backward pass. The adapter stays whole on each device,
so its gradients, optimizer and checkpoints are those of plain DDP, and no part of the base is ever saved.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from nlicot.model.fast.patch import decoder_of
from nlicot.model.loaded_model import adapter_parameters, causal_lm


def shard_base(adapted: Any, mesh: DeviceMesh) -> None:
    """Leave each device of a 1-D mesh its part of the decoder layers.

    Embeddings, the last norm and the LM head stay whole. All ranks must then run the model equally often.
    """
    decoder = decoder_of(causal_lm(adapted))
    whole = set(adapter_parameters(adapted).values())
    for layer in decoder.layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
    whole |= {each for each in decoder.parameters() if not isinstance(each, DTensor)}
    fully_shard(decoder, mesh=mesh, ignored_params=whole)  # so that layers are gathered ahead


def hide_from_ddp(module: nn.Module) -> None:
    """Keep DDP from copying the first rank's parts of the base to the others."""
    names = [name for name, each in module.named_parameters() if isinstance(each, DTensor)]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, names)  # type: ignore[no-untyped-call]
