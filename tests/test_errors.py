"""Messages for a user's mistakes."""

import pytest

from lmxlab.errors import UnknownNameError, UserError, unknown_name


def test_an_unknown_name_offers_the_nearest_and_lists_all_in_order():
    message = unknown_name("dataset", "shakespear", ["tinystories", "shakespeare"])
    assert message == (
        "Unknown dataset 'shakespear'; did you mean 'shakespeare'? Available: ['shakespeare', 'tinystories']"
    )


def test_of_very_many_names_the_nearest_are_listed():
    message = unknown_name("key", "key_77x", [f"key_{i}" for i in range(100)])
    assert "did you mean 'key_77'" in message and message.endswith("and 70 more")


def test_a_name_that_is_near_to_nothing_gets_no_offer():
    assert unknown_name("dataset", "xyz", ["shakespeare"]) == "Unknown dataset 'xyz'. Available: ['shakespeare']"


def test_an_unknown_name_is_a_value_error_and_a_key_error_and_reads_without_quotes():
    error = UnknownNameError("optimizer", "adamww", ["adamw"])
    assert isinstance(error, UserError)
    assert isinstance(error, ValueError)
    with pytest.raises(KeyError):
        raise error
    assert str(error).startswith("Unknown optimizer 'adamww'; did you mean 'adamw'?")
