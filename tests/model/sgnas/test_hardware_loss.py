"""The hardware loss: the published one, and shares of the target."""

import torch

from model.sgnas.hardware_loss import HardwareLoss


def test_the_hardware_loss_is_the_published_one():
    loss = HardwareLoss(alpha=0.0003, loss_penalty=1.2, cost_tolerance=0.1)
    costs, targets = torch.tensor([110.0, 90.0, 100.05, 100.0]), torch.full((4,), 100.0)
    expected = torch.tensor([0.0003 * 1.2 * 100, 0.0003 * 100, 0.0, 0.0])
    torch.testing.assert_close(loss(costs, targets), expected)


def test_the_unit_of_the_hardware_loss_scales_a_small_space():
    small = HardwareLoss(cost_tolerance=0.0025, cost_unit=0.025)
    found = small(torch.tensor([2.75]), torch.tensor([2.5]))
    expected = HardwareLoss()(torch.tensor([110.0]), torch.tensor([100.0]))
    torch.testing.assert_close(found, expected)


def test_a_relative_hardware_loss_weighs_shares_of_the_target():
    loss = HardwareLoss(alpha=100, loss_penalty=1.0, cost_tolerance=0.0, hardware_loss="relative")
    found = loss(torch.tensor([9.0, 90.0]), torch.tensor([10.0, 100.0]))
    torch.testing.assert_close(found, torch.tensor([1.0, 1.0]))
