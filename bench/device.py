"""Which device a process measures on."""

import platform

import torch

from bench.machine import cpu_name


def describe_place(device):
    """The field `device` of a record: {"node", "gpu", "uuid", "cpu"}; gpu and uuid are None on a CPU."""
    device = torch.device(device)
    gpu = uuid = None
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        gpu, uuid = properties.name, str(properties.uuid)
    return {"node": platform.node(), "gpu": gpu, "uuid": uuid, "cpu": cpu_name()}


def visible_gpus():
    """[UUID] of the GPUs that this process sees, as CUDA_VISIBLE_DEVICES takes them."""
    count = torch.cuda.device_count()
    return [f"GPU-{torch.cuda.get_device_properties(index).uuid}" for index in range(count)]
