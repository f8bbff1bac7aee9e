import subprocess
import sys

import pytest
import torch

from sensorium.nn.backbone import llama
from sensorium.nn.blank import blank


def test_a_blank_model_has_the_shapes_of_a_drawn_one():
    config = llama(vocab=11, width=8, depth=2, heads=2, hidden=16)
    with blank():
        shapes = {name: (tensor.shape, tensor.device.type) for name, tensor in config.build().state_dict().items()}
    assert shapes == {name: (tensor.shape, "meta") for name, tensor in config.build().state_dict().items()}
    assert torch.zeros(1).device.type == "cpu"


@pytest.mark.slow
def test_making_one_does_not_load_torchs_compiler():
    code = (
        "import sys\nfrom sensorium.nn.backbone import llama\nfrom sensorium.nn.blank import blank\n"
        "with blank():\n    llama(vocab=11, width=8, depth=1, heads=2, hidden=16).build()\n"
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
