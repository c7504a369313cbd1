"""`flashvideo doctor`: what this machine has, and whether it is enough."""

from __future__ import annotations

import argparse
import platform
from typing import Any

from flashvideo import __version__
from flashvideo.cli import arguments as shared
from flashvideo.cli.results import Result
from flashvideo.evaluation.machine import describe_processor, package_version

_PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "numpy", "av", "pillow")
_OPTIONAL_PACKAGES = ("peft",)  # for loading LoRA adapters
_ENCODERS = ("libx264", "libvpx-vp9")
_GIB = 1024**3


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "doctor",
        help="check this installation and this machine",
        description="Check this installation and this machine; exit code 1 if something is missing.",
    )
    shared.add_common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> Result:
    """Looks at versions, devices, memory, encoders and the shipped model."""
    data: dict[str, Any] = {
        "flashvideo": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: package_version(name) for name in (*_PACKAGES, *_OPTIONAL_PACKAGES)},
    }
    problems = [
        f"the package {name} is missing; pip install {name}"
        for name in _PACKAGES
        if not package_version(name)
    ]
    if not problems:
        data |= {
            "processor": describe_processor(),
            "devices": describe_devices(),
            "encoders": {name: has_encoder(name) for name in _ENCODERS},
            "nano": nano_weights(),
        }
        missing = [name for name, found in data["encoders"].items() if not found]
        problems += [f"FFmpeg has no encoder {name}; pip install --force-reinstall av" for name in missing]
        if data["nano"] is None:
            problems.append(
                "the weights of nano are not complete; install flashvideo again, or pass --model DIR"
            )
    data["problems"] = problems
    return Result(data=data, text=as_text(data), exit_code=1 if problems else 0)


def describe_devices() -> dict[str, dict[str, Any]]:
    """Returns each device with its name, its memory, and what the dtype probe found on it."""
    import torch

    devices: dict[str, dict[str, Any]] = {"cpu": {}}
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(i)
            memory = round(properties.total_memory / _GIB, 1)
            devices[f"cuda:{i}"] = {"name": properties.name, "memory_gib": memory}
    if torch.backends.mps.is_available():
        devices["mps"] = {}
    for name, facts in devices.items():
        facts |= probe(name)
    return devices


def probe(device: str) -> dict[str, Any]:
    """Returns the dtype that would be used on a device, and how much faster than float32 bfloat16 is there."""
    import torch

    from flashvideo.pipelines.loading import probe_dtype

    found = probe_dtype(device)
    speedup = found.seconds[torch.float32] / found.seconds[torch.bfloat16]
    return {"dtype": str(found.dtype).removeprefix("torch."), "bfloat16_speedup": round(speedup, 2)}


def has_encoder(name: str) -> bool:
    """Whether the FFmpeg inside PyAV can encode with this."""
    import av

    try:
        av.Codec(name, "w")
    except ValueError:  # av's error for an unknown codec is one
        return False
    return True


def nano_weights() -> str | None:
    """Returns the folder of the model inside the package, None if it is not complete."""
    from flashvideo.pipelines.folders import NANO_PATH

    parts = ("text_encoder", "vae", "stage1_transformer", "stage2_transformer")
    complete = (NANO_PATH / "model_index.json").is_file() and all(
        any((NANO_PATH / part).glob("*.safetensors")) for part in parts
    )
    return str(NANO_PATH) if complete else None


def as_text(data: dict[str, Any]) -> str:
    """Returns the findings as lines for people, the problems last."""
    versions = ", ".join(f"{name} {version or 'missing'}" for name, version in data["packages"].items())
    lines = [
        f"flashvideo {data['flashvideo']}, Python {data['python']}, {data['platform']}",
        f"packages: {versions}",
    ]
    if "processor" in data:
        cpu = data["processor"]
        lines.append(
            f"processor: {cpu['name']} ({cpu['features']}), {cpu['cores']} cores, {cpu['threads']} threads, "
            f"{cpu['memory_gib']} GiB memory, {cpu['free_memory_gib']} GiB free"
        )
        for name, device in data["devices"].items():
            what = f"{device['name']}, {device['memory_gib']} GiB, " if "name" in device else ""
            lines.append(
                f"device {name}: {what}{device['dtype']} (bfloat16 is {device['bfloat16_speedup']} times as fast "
                "as float32)"
            )
        found = ", ".join(f"{name} {'found' if ok else 'missing'}" for name, ok in data["encoders"].items())
        lines += [f"encoders: {found}", f"nano: {data['nano'] or 'missing'}"]
    lines += [f"problem: {problem}" for problem in data["problems"]] or ["all is well"]
    return "\n".join(lines)
