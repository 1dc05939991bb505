"""What GPUs can do at most, from their makers' datasheets; nothing here was measured."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Peaks:
    """Datasheet peaks of one GPU, without sparsity.

    Attributes:
        memory: bytes a second from device memory.
        half: float16 and bfloat16 FLOP/s of the tensor cores, accumulating in float32; 8-bit types' are twice as many.
        tf32: TF32 FLOP/s of the tensor cores.
        fp32: float32 FLOP/s outside the tensor cores.
        source: which datasheet.
    """

    memory: float
    half: float
    tf32: float
    fp32: float
    source: str

    def flops(self, dtype: torch.dtype, tensor_cores: bool) -> float:
        """FLOP/s for operands of `dtype`: on the tensor cores if the kernel uses them and they take it."""
        if tensor_cores and dtype in (torch.float16, torch.bfloat16):
            return self.half
        if tensor_cores and dtype in (torch.int8, torch.float8_e4m3fn, torch.float8_e5m2):
            return 2 * self.half
        return self.fp32


_A100 = "NVIDIA A100 Tensor Core GPU datasheet"
_H100 = "NVIDIA H100 Tensor Core GPU datasheet"
_H200 = "NVIDIA H200 Tensor Core GPU datasheet"

#: By the name that the driver reports, without "NVIDIA " in front.
PEAKS = {
    "A100-SXM4-40GB": Peaks(1555e9, 312e12, 156e12, 19.5e12, _A100),
    "A100-PCIE-40GB": Peaks(1555e9, 312e12, 156e12, 19.5e12, _A100),
    "A100-SXM4-80GB": Peaks(2039e9, 312e12, 156e12, 19.5e12, _A100),
    "A100 80GB PCIe": Peaks(1935e9, 312e12, 156e12, 19.5e12, _A100),
    "H100 80GB HBM3": Peaks(3.35e12, 989e12, 494e12, 67e12, _H100),
    "H100 PCIe": Peaks(2.0e12, 756e12, 378e12, 51e12, _H100),
    "H200": Peaks(4.8e12, 989e12, 494e12, 67e12, _H200),
}


def peaks_of(device: torch.device) -> tuple[Peaks | None, str]:
    """(the device's peaks, where they are from), or (None, why they are not known)."""
    if device.type != "cuda":
        return None, f"no datasheet peaks for a {device.type} device"
    name = torch.cuda.get_device_name(device).removeprefix("NVIDIA ")
    peaks = PEAKS.get(name)
    return (peaks, peaks.source) if peaks is not None else (None, f"no datasheet peaks are known for {name!r}")
