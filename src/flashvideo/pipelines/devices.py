"""Which device to work on."""

import torch

GIB = 1024**3


def choose_device(device: str | torch.device = "auto") -> torch.device:
    """Returns the device that was asked for, or for `"auto"` the first of cuda, mps and cpu that this machine has.

    Raises:
        ValueError: If torch does not know the device, or this machine does not have it.
    """
    available = ["cpu"]
    if torch.backends.mps.is_available():
        available.insert(0, "mps")
    if torch.cuda.is_available():
        available.insert(0, "cuda")
    if device == "auto":
        return torch.device(available[0])
    expected = "'auto', " + ", ".join(repr(name) for name in available)
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device must be one of {expected}, got {device!r}") from error
    if chosen.type == "cuda" and chosen.type in available:
        in_range = chosen.index is None or chosen.index < torch.cuda.device_count()
    else:
        in_range = chosen.type in available
    if not in_range:
        raise ValueError(f"device must be one of {expected}, got {str(device)!r}, which this machine lacks")
    return chosen
