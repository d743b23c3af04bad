"""Teachers: the largest network of a supernet, or one of timm."""

import pytest
import timm
import torch
from torch.nn import functional as F

from model.sgnas.warm_up import supernet_payload
from model.spaces.elastic.supernet import ElasticSupernet
from model.spaces.unified.supernet import UnifiedSupernet
from model.training.distillation import DistillationLoss, load_teacher
from tests.conftest import mixed_space, rng
from tests.support import SMALL_ELASTIC
from utils import checkpoint
from utils.errors import UserError


def test_the_distillation_loss_is_the_published_one():
    logits = torch.randn(5, 4, generator=rng())
    labels, taught = torch.arange(5) % 4, torch.randn(5, 4, generator=rng(1)).softmax(dim=1)
    soft = -(taught * logits.log_softmax(dim=1)).sum(dim=1).mean()
    expected = (3 * soft + F.cross_entropy(logits, labels)) * 2 / (3 + 1)
    torch.testing.assert_close(DistillationLoss(3.0)(logits, (labels, taught)), expected)


def test_a_supernet_teaches_by_its_largest_network_on_the_statistics_of_the_batch(tmp_path):
    supernet, file = UnifiedSupernet(mixed_space(), rng()), str(tmp_path / "supernet.pth")
    checkpoint.save(tmp_path / "supernet.pth", supernet_payload(supernet, 1))
    images = torch.randn(6, 3, 12, 12, generator=rng())
    taught = load_teacher(file, 7)(images)
    expected = supernet.train()(images, supernet.space.extremes()[1]).softmax(dim=1)
    torch.testing.assert_close(taught, expected.detach())
    assert not taught.requires_grad
    with pytest.raises(UserError, match="it has 7 classes, not 10"):
        load_teacher(file, 10)


def test_an_elastic_supernet_teaches_by_its_largest_network(tmp_path):
    supernet = ElasticSupernet(SMALL_ELASTIC, rng())
    checkpoint.save(tmp_path / "elastic.pth", supernet_payload(supernet, 1))
    images = torch.randn(4, 3, 32, 32, generator=rng())
    taught = load_teacher(str(tmp_path / "elastic.pth"), SMALL_ELASTIC.classes)(images)
    largest = supernet.train()(images, SMALL_ELASTIC.decode(SMALL_ELASTIC.extremes()[1]))
    torch.testing.assert_close(taught, largest.softmax(dim=1).detach())


def test_a_network_of_timm_teaches_in_evaluation_mode(tmp_path):
    network = timm.create_model("resnet18", num_classes=10)
    checkpoint.save(tmp_path / "teacher.pth", {"state_dict": network.state_dict()})
    teacher = load_teacher("resnet18", 10, str(tmp_path / "teacher.pth"))
    images = torch.randn(2, 3, 32, 32, generator=rng())
    alone = teacher(images[:1])
    torch.testing.assert_close(teacher(images)[:1], alone)
    torch.testing.assert_close(teacher(images), network.eval()(images).softmax(dim=1).detach())
