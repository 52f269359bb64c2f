"""What examples of every kind share: how they are cut to length."""

import pytest

from lmxlab.data.examples import cut, padded_length


@pytest.mark.parametrize(
    ("side", "max_tokens", "expected"),
    [
        ("left", 7, ([1, 2, 3, 4], [[5, 6, 7], [8]])),
        ("left", 6, ([2, 3, 4], [[5, 6, 7], [8]])),
        ("left", 4, ([4], [[5, 6, 7], [8]])),
        ("left", 3, ([4], [[5, 6], [8]])),
        ("right", 6, ([1, 2, 3, 4], [[5, 6], [8]])),
        ("right", 4, ([1, 2, 3, 4], [[], []])),
        ("right", 3, ([1, 2, 3], [[], []])),
    ],
)
def test_a_side_is_cut_and_all_completions_keep_one_prompt(
    side: str, max_tokens: int, expected: tuple[list[int], list[list[int]]]
) -> None:
    assert cut([1, 2, 3, 4], [[5, 6, 7], [8]], max_tokens, side) == expected


@pytest.mark.parametrize(("longest", "length"), [(1, 32), (32, 32), (33, 64), (65, 80)])
def test_lengths_are_few_and_none_longer_than_the_longest_example(longest: int, length: int) -> None:
    assert padded_length(longest, most=80) == length
