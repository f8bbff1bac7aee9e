import pytest
import torch

from sensorium.connectors.as_is import AsIs
from sensorium.errors import UserError
from sensorium.nn.part import Features, Grid


def test_features_are_the_tokens_of_their_own_width_alone():
    values = torch.randn(7, 6)
    assert AsIs.Config().num_tokens(Grid(2, 3, extra=1)) == 7
    assert torch.equal(AsIs.Config().build(6, 6)(Features(values, [Grid(2, 3, extra=1)])), values)
    with pytest.raises(UserError, match="6 wide and tokens 8"):
        AsIs.Config().build(6, 8)
