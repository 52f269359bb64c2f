"""What every source of text gives: a name, a fingerprint that is cheap to take, and documents when they are needed."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Documents:
    """The texts of a dataset.

    Attributes:
        texts: every document, or the training documents when `validation` is given; may be iterated several times.
        validation: documents that the dataset itself holds out; None when it is for lmxlab to split.
    """

    texts: Iterable[str]
    validation: Iterable[str] | None = None


@dataclass(frozen=True)
class Corpus:
    """A dataset that has been found but not yet read.

    Attributes:
        name: short, for the name of a folder.
        source: where the text comes from, one line for people.
        fingerprint: differs when the content differs; taking it reads no more than it must.
        read: the documents; downloads them where that is needed.
    """

    name: str
    source: str
    fingerprint: str
    read: Callable[[], Documents]
