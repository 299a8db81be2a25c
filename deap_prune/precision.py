"""Numeric precision: strict fp32, and whether a device computes in bf16."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute fp32 without TF32 and with deterministic cuDNN algorithms, so that runs can be repeated."""
    cudnn = torch.backends.cudnn
    before = (cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic)
    products = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic = False, False, True
    try:
        yield
    finally:
        cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic = before
        torch.set_float32_matmul_precision(products)


def computes_bf16(device: torch.device) -> bool:
    """Whether the device has bf16 instructions (on a CPU: AVX512_BF16, AMX or Arm's BF16)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    path = Path("/proc/cpuinfo")
    if device.type != "cpu" or not path.is_file():
        return False
    lines = (line for line in path.read_text().splitlines() if line.lower().startswith(("flags", "features")))
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(next(lines, "").split()))
