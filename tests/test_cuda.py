"""The same code on a CUDA device: equal to the CPU within 1e-3."""

import json
import math

import pytest
import torch
from torch.nn import functional as F

import search
import train_imagenet
from model.costs.lookup_table import LookUpTable
from model.sgnas.generator import ArchitectureGenerator
from model.spaces.nasbench201.space import CellSpace
from model.spaces.nasbench201.supernet import CellSupernet
from model.spaces.registry import KINDS
from model.spaces.unified.supernet import UnifiedSupernet
from tests import support
from tests.conftest import mixed_space, rng
from tests.worlds import in_world
from utils import distributed
from utils.checkpoint import load
from utils.engine import DeviceContext

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]


def close(found, expected):
    support.close(found.cpu(), expected.cpu(), 1e-3)


SUPERNETS = {
    "unified": lambda: UnifiedSupernet(mixed_space(se=True), rng()),
    "nasbench201": lambda: CellSupernet(CellSpace(channels=4), rng(), image_size=12),
}


@pytest.mark.parametrize("name", SUPERNETS)
def test_hard_and_soft_paths_on_cuda_equal_the_cpu(name):
    supernet, kind = SUPERNETS[name]().eval(), KINDS[name]
    space, images = supernet.space, torch.randn(4, 3, 12, 12, generator=rng())
    hard = space.sample(1, rng())[0]
    mixture = space.relax(torch.randn(space.shape, generator=rng()), 5.0, rng())
    results = []
    for device in ("cpu", "cuda"):
        supernet.to(device)
        path = mixture.to(device).requires_grad_()
        logits = kind.soft(supernet)(images.to(device), path)
        logits.square().mean().backward()
        with torch.no_grad():
            results.append([supernet(images.to(device), hard.to(device)), logits, path.grad])
    for expected, found in zip(*results, strict=True):
        close(found, expected)


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
    folder = tiny_config.parent / "logs" / "tiny" / "checkpoints"
    assert load(folder / "generator_last.pth")["epoch"] == 2


@pytest.mark.parametrize(
    "more", [[], ["--amp"], ["--amp", "--amp-dtype", "float16"], ["--channels-last", "false"]]
)
def test_imagenet_training_runs_on_cuda(image_folder, more, capsys):
    train_imagenet.main(support.imagenet_command(image_folder, *more))
    assert "on cuda" in capsys.readouterr().out
    result = json.loads((image_folder / "logs" / "net" / "result.json").read_text())
    assert math.isfinite(result["last"]["loss"])


def talk_by_nccl():
    distributed.average([tensor := torch.full((3,), 2.0, device="cuda")])
    torch.distributed.all_reduce(tensor)
    return torch.distributed.get_backend(), tensor.tolist(), distributed.totals(1, 2)


def test_a_world_of_one_talks_by_nccl(tmp_path):
    [(backend, tensor, totals)] = in_world(1, talk_by_nccl, tmp_path)
    assert "nccl" in backend
    assert (tensor, totals) == ([2.0] * 3, [1.0, 2.0])


def test_a_training_step_on_cuda_equals_the_cpu():
    """Gradients of four paths, in channels-last."""
    supernets = [UnifiedSupernet(mixed_space(), rng()).train() for _ in range(2)]
    supernets[1].to("cuda")
    images, labels = torch.randn(8, 3, 12, 12, generator=rng()), torch.arange(8) % 7
    for supernet, device in zip(supernets, ("cpu", "cuda"), strict=True):
        context = DeviceContext(torch.device(device))
        paths = supernet.space.sample_fair(4, rng(1))
        given = (paths, context, *context.batch(images, labels))
        for logits, targets in KINDS["unified"].passes(supernet, *given):
            F.cross_entropy(logits, targets).backward()
    for one, other in zip(supernets[1].parameters(), supernets[0].parameters(), strict=True):
        if other.grad is not None and float(other.grad.abs().max()) > 1e-6:
            close(one.grad, other.grad)
