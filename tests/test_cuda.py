"""The same code on a CUDA device: equal to the CPU within 1e-3."""

import pytest
import torch

import search
from model.generator import ArchitectureGenerator
from model.lookup_table import LookUpTable
from model.supernet import UnifiedSupernet
from tests.conftest import rng
from utils.checkpoint import load

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device on this machine"),
]


def close(one, other):
    assert float((one.cpu() - other.cpu()).abs().max()) < 1e-3 * float(other.abs().max())


def test_hard_and_soft_paths_on_cuda_equal_the_cpu(cifar_space):
    supernet = UnifiedSupernet(cifar_space).eval()
    images = torch.randn(4, 3, 32, 32, generator=rng())
    hard = cifar_space.sample(1, rng())[0]
    soft = cifar_space.relax(torch.randn(cifar_space.shape, generator=rng()), 5.0, rng())
    with torch.no_grad():
        expected = [supernet(images, path) for path in (hard, soft)]
        supernet.to("cuda")
        for path, logits in zip((hard, soft), expected, strict=True):
            close(supernet(images.to("cuda"), path.to("cuda")), logits)


def test_table_and_generator_on_cuda_equal_the_cpu(cifar_space):
    table, generator = LookUpTable(cifar_space), ArchitectureGenerator(80, 120).eval()
    priors, targets = cifar_space.sample(3, rng()), torch.tensor([85.0, 100.0, 115.0])
    with torch.no_grad():
        logits, costs = generator(priors, targets), table(priors)
        close(generator.to("cuda")(priors.to("cuda"), targets.to("cuda")), logits)
        close(table.to("cuda")(priors.to("cuda")), costs)


@pytest.mark.parametrize("amp", ["true", "false"])
def test_a_search_runs_on_cuda(tiny_config, amp, capsys):
    search.main(["--cfg", str(tiny_config), "--set", f"amp={amp}"])
    assert "on cuda" in capsys.readouterr().out
    assert load(tiny_config.parent / "logs" / "tiny" / "checkpoints" / "generator_last.pth")["epoch"] == 2
