"""A data config cannot be invalid."""

import pytest

from lmxlab.data import DataConfig
from lmxlab.errors import UserError


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dataset": ""}, "dataset is empty"),
        ({"tokenizer": ""}, "tokenizer is empty"),
        ({"val_fraction": 0.0}, "val_fraction is 0.0"),
        ({"val_fraction": 1.0}, "val_fraction is 1.0"),
        ({"val_fraction": float("nan")}, "val_fraction is nan"),
        ({"seed": -1}, "seed is -1"),
        ({"max_documents": 0}, "max_documents is 0"),
        ({"shards": 0}, "shards is 0"),
    ],
)
def test_a_config_cannot_be_invalid(fields, message):
    with pytest.raises(UserError, match=message):
        DataConfig(**fields)
