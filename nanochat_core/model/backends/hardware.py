"""What a device is, for kernels that only some devices run."""

from typing import NamedTuple

import torch

from nanochat_core.errors import ConfigError

FLASH_DTYPES = (torch.bfloat16, torch.float16)


class UnavailableError(ConfigError):
    """An attention backend that cannot be used here: wrong device, or nothing installed."""


class Hardware(NamedTuple):
    """A device by its name; `capability` is None for everything but an NVIDIA GPU."""

    name: str
    capability: tuple[int, int] | None


def hardware_of(device: torch.device) -> Hardware:
    """Look at a device; an AMD GPU has numbers of its own, which say nothing here."""
    if device.type != "cuda":
        return Hardware(
            "a CPU" if device.type == "cpu" else f"a device of type {device.type}", None
        )
    name = torch.cuda.get_device_name(device)
    if torch.version.hip is not None:
        return Hardware(name, None)
    return Hardware(name, torch.cuda.get_device_capability(device))


def check_capability(hardware: Hardware, majors: tuple[int, ...]) -> None:
    """Raise UnavailableError unless it is an NVIDIA GPU of one of these generations."""
    if hardware.capability is not None and hardware.capability[0] in majors:
        return
    wanted = " or ".join(f"{major}.0" for major in majors)
    found = hardware.name
    if hardware.capability is not None:
        found = f"{found} with {hardware.capability[0]}.{hardware.capability[1]}"
    raise UnavailableError(f"needs an NVIDIA GPU of compute capability {wanted}; this is {found}")


def check_flash_dtype(dtype: torch.dtype) -> None:
    """Raise UnavailableError for a dtype that flash kernels do not train in."""
    if dtype not in FLASH_DTYPES:
        given = str(dtype).removeprefix("torch.")
        raise UnavailableError(f"computes in bfloat16 and float16; this run computes in {given}")
