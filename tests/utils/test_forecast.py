"""What training needs: counted by hand for a layer, and scaled."""

import torch
from torch import nn

from utils import forecast
from utils.engine import DeviceContext
from utils.forecast import forecast_steps, peak_bytes, random_batch, saved_bytes, trained_bytes

CPU = DeviceContext(torch.device("cpu"))


def test_a_graph_keeps_inputs_and_no_weights():
    network, x = nn.Linear(3, 5), torch.randn(7, 3)
    assert trained_bytes(network) == 3 * 4 * (3 * 5 + 5)
    assert saved_bytes(lambda: network(x), network) == 4 * 7 * 3
    assert saved_bytes(lambda: (network(x), network(x)), network) == 4 * 7 * 3  # the same memory


def test_memory_of_graphs_and_time_grow_with_the_batch(monkeypatch):
    monkeypatch.setattr(forecast, "seconds", lambda step, context: step())
    network, x = nn.Linear(3, 5), torch.randn(7, 3)
    needs = forecast_steps([lambda: 1.0, lambda: 3.0], lambda: network(x), network, CPU, 10)
    assert needs.seconds == 20
    assert needs.peak_bytes == 3 * 4 * 20 + 10 * 4 * 7 * 3


def test_random_batches_are_those_of_the_stream():
    rng = torch.Generator().manual_seed(1)
    images, labels = random_batch(2, 4, CPU, rng)
    assert images.shape == (2, 3, 4, 4)
    assert images.equal(torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1)))
    assert labels.tolist() == [0, 0]


def test_what_a_process_has_freed_counts_in_its_peak():
    torch.ones(2**26)  # 256 MiB
    assert peak_bytes(CPU.device) > 2**28
