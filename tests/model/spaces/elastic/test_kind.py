"""Elastic spaces as a kind of space: records of architectures."""

import pytest

from model.spaces.elastic.kind import KIND
from tests.support import SMALL_ELASTIC
from utils.errors import UserError


def test_a_record_is_read_as_it_is_written():
    architecture = SMALL_ELASTIC.decode(SMALL_ELASTIC.extremes()[1])
    assert KIND.architecture(SMALL_ELASTIC, architecture.to_json()) == architecture


@pytest.mark.parametrize(
    "record",
    [
        {"ks": [3], "e": [3], "d": [1], "r": 16},
        {"ks": [3, 9], "e": [3, 3], "d": [1, 1], "r": 16},
        {"ks": [3, 3, 3], "e": [3, 3, 3], "d": [1, 1], "r": 16},
        {"ks": [3, 3], "e": [3, 3], "d": [1, 1], "r": 17},
        {"ks": [3, 3], "e": [3, 3], "d": [1, 1]},
        [1, 2],
    ],
)
def test_an_architecture_of_another_space_is_refused(record):
    with pytest.raises(UserError, match="architecture: not "):
        KIND.architecture(SMALL_ELASTIC, record)
