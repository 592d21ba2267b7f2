import pytest
import torch

from models.build import build
from models.presets import PAIR


@pytest.fixture(autouse=True)
def one_thread():
    """The operations on tiny models are shorter than the wait for a second thread on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=PAIR)
def model(request, device):
    return build(request.param, "tiny", device=device)
