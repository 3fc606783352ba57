import os

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(autouse=True)
def one_thread():
    """Tests run on one thread, so that sums are always taken in the same order."""
    torch.set_num_threads(1)
