"""Copies between the host and a device, of which those of pageable memory wait."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class HostCopies(TorchDispatchMode):
    """Notes each of them; on the device ``meta``, too, which has shapes and no values."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        copies = {torch.ops.aten._to_copy: 0, torch.ops.aten.copy_: 1}
        source = copies.get(func.overloadpacket)
        if source is not None and args[source].device != result.device:
            self.found.append(f"{func} from {args[source].device} to {result.device}")
        return result
