"""Pretrained tensors find their place in a part."""

import pytest
import torch
from torch.testing import assert_close

from sensorium.errors import UserError
from sensorium.nn.backbone import llama
from sensorium.train.build import load_part

SMALL = llama(vocab=50, width=16, depth=1, heads=2, hidden=32, tied=True)


def test_a_larger_vocabulary_keeps_the_rows_of_the_file_and_draws_the_rest_like_them():
    published = SMALL.build()
    with torch.no_grad():
        published.embed.weight.normal_(3.0, 0.5)
    grown = SMALL.replace(vocab=54).build()
    report = load_part(grown, published.state_dict().items())
    assert (report.missing, report.unexpected) == ([], [])
    rows, more = grown.embed.weight.detach().split([50, 4])
    assert_close(rows, published.embed.weight.detach())
    assert abs(more.mean() - 3.0) < 0.3
    assert 0.3 < more.std() < 0.7
    assert len(more.unique(dim=0)) == 4
    again = SMALL.replace(vocab=54).build()
    load_part(again, published.state_dict().items())
    assert again.embed.weight.equal(grown.embed.weight)


def test_a_smaller_vocabulary_and_other_shapes_are_refused():
    published = SMALL.build()
    with pytest.raises(UserError, match=r"'embed.weight' is \(50, 16\) in the file, \(40, 16\) in the model"):
        load_part(SMALL.replace(vocab=40).build(), published.state_dict().items())
    with pytest.raises(UserError, match="in the file"):
        load_part(SMALL.replace(width=32).build(), published.state_dict().items())
