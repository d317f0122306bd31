"""Random states of the process, which functions of a library leave as they find them."""

import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn


def accelerators_of(modules: Iterable[nn.Module]) -> list[torch.device]:
    """Return the devices other than the CPU that modules lie on, each once, sorted."""
    found = {p.device for module in modules for p in module.parameters()}
    # Devices without a module of torch, such as `lazy`, have no random state of their own.
    return sorted((device for device in found if device.type != "cpu" and hasattr(torch, device.type)), key=str)


def random_states(devices: Iterable[torch.device]) -> list[Tensor]:
    """Return torch's random states, uint8 tensors on the CPU: that of the CPU, and those of other devices."""
    return [torch.get_rng_state(), *(torch.get_device_module(each).get_rng_state(*_index(each)) for each in devices)]


def restore_random_states(devices: Iterable[torch.device], states: Sequence[Tensor]) -> None:
    """Restore what `random_states` returned for the same devices."""
    torch.set_rng_state(states[0])
    for device, state in zip(devices, states[1:], strict=True):
        torch.get_device_module(device).set_rng_state(state, *_index(device))


def _index(device: torch.device) -> list[torch.device]:
    return [] if device.type == "mps" else [device]  # there is one, and its functions take no device


@contextmanager
def kept_random_states(*modules: nn.Module) -> Iterator[None]:
    """Restore the random states of Python, NumPy and torch at the end: on the CPU, and on the modules' devices or all."""
    # `torch.random.fork_rng` keeps devices of one type, and leaves out those that are not named.
    devices = accelerators_of(modules)
    if not modules and torch.cuda.is_initialized():
        devices = [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    states = random_states(devices)
    numpy_state = np.random.get_state()
    python_state = random.getstate()
    try:
        yield
    finally:
        restore_random_states(devices, states)
        np.random.set_state(numpy_state)
        random.setstate(python_state)
