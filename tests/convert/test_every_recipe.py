import pytest

from sensorium.convert.family import FAMILIES
from sensorium.errors import UserError
from sensorium.recipes.catalog import find, names


@pytest.mark.slow
def test_every_layout_says_a_recipe_or_why_it_cannot():
    """Whatever a model is, a layout is written or refused by a sentence: nothing else comes out."""
    said, reasons = {}, []
    for name in names():
        for size in ("tiny", "small", "paper"):
            try:
                model = find(name, size).model
            except UserError:  # not every recipe has every size
                continue
            for family in FAMILIES:
                try:
                    family.write(model)
                except UserError as error:
                    reasons.append(str(error))
                else:
                    said.setdefault(name, set()).add(family.name)
    assert all(len(reason) > 20 for reason in reasons)
    assert said["llava-1.5"] == {"llava"}
    assert (said["clip"], said["siglip"]) == ({"clip"}, {"siglip"})
