"""Clocks, power, temperature, throttling and energy, read and never set. What a machine does not tell is null."""

import os
import time

import psutil
import torch

from bench.machine import nvml_handle, open_nvml

ENERGY_WINDOW_S = 1.0  # the counter of a GPU moves every few tens of milliseconds

THROTTLES = {
    "nvmlClocksEventReasonSwPowerCap": "power cap",
    "nvmlClocksEventReasonHwSlowdown": "hardware slowdown",
    "nvmlClocksEventReasonSwThermalSlowdown": "software thermal",
    "nvmlClocksEventReasonHwThermalSlowdown": "hardware thermal",
    "nvmlClocksEventReasonHwPowerBrakeSlowdown": "power brake",
}


class Gauges:
    """The gauges of one device."""

    def __init__(self, device):
        self.device = torch.device(device)
        self._handle = nvml_handle(self.device) if self.device.type == "cuda" else None
        self._nvml = open_nvml() if self._handle is not None else None

    def clocks(self):
        """What the device runs at right now, for the record's `clocks`."""
        if self.device.type == "cpu":
            frequency = psutil.cpu_freq()
            return {
                "cpu_mhz": round(frequency.current, 1) if frequency else None,
                "load_1min": round(os.getloadavg()[0], 2),
            }
        nvml = self._nvml
        if nvml is None:
            return {}
        return {
            "sm_mhz": self._read(lambda h: nvml.nvmlDeviceGetClockInfo(h, nvml.NVML_CLOCK_SM)),
            "power_w": self._read(lambda h: nvml.nvmlDeviceGetPowerUsage(h) / 1e3),
            "temperature_c": self._read(
                lambda h: nvml.nvmlDeviceGetTemperature(h, nvml.NVML_TEMPERATURE_GPU)
            ),
            "throttle": self._read(self._throttles),
        }

    def used_bytes(self):
        """Bytes in use on the whole device, or None."""
        if self._nvml is None:
            return None
        return self._read(lambda h: self._nvml.nvmlDeviceGetMemoryInfo(h).used)

    def energy_per_run(self, run):
        """Joules of one `run`: the counter's difference over at least a second of runs; None if unsupported."""
        if self._energy() is None:
            return None
        torch.cuda.synchronize(self.device)
        before, start, runs = self._energy(), time.perf_counter(), 0
        while time.perf_counter() - start < ENERGY_WINDOW_S:
            run()
            torch.cuda.synchronize(self.device)
            runs += 1
        after = self._energy()
        return (after - before) / 1e3 / runs

    def _energy(self):
        if self._nvml is None:
            return None
        return self._read(self._nvml.nvmlDeviceGetTotalEnergyConsumption)

    def _throttles(self, handle):
        mask = self._nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)
        return [name for bit, name in THROTTLES.items() if mask & getattr(self._nvml, bit)]

    def _read(self, ask):
        try:
            return ask(self._handle)
        except self._nvml.NVMLError:
            return None
