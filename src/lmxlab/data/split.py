"""Which documents train and which are held out."""

import hashlib
import logging
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np

from lmxlab.data.corpus import Documents
from lmxlab.errors import UserError

log = logging.getLogger(__name__)


class Split:
    """Training and validation documents with no document in both; `train` and `val` may be iterated several times.

    - A dataset with its own validation documents keeps them.
    - Several documents: a seeded choice of whole documents, in size about `val_fraction`, at least one on each side.
    - One document: in order, its end is held out (`running_text` is then True: no separators are needed).

    Blank documents and exact repetitions are dropped.

    Raises:
        UserError: no text, or too little to hold any out.
    """

    def __init__(self, documents: Documents, val_fraction: float, seed: int, max_documents: int | None = None):
        self.running_text = False
        self.train: Iterable[str]
        self.val: list[str]
        if documents.validation is not None:
            seen: set[bytes] = set()
            self.val = list(_distinct(documents.validation, seen))
            self.train = _TrainingStream(documents.texts, frozenset(seen), max_documents)
            if not self.val or next(iter(self.train), None) is None:
                raise UserError("the dataset holds no text on one side of its own split: take more documents.")
            return
        given = list(islice(documents.texts, max_documents))
        texts = list(_distinct(given, set()))
        if len(texts) < len(given):
            log.info("%d blank or repeated documents of %d are left out", len(given) - len(texts), len(given))
        if not texts:
            raise UserError("the dataset holds no text: every document is empty or blank.")
        if len(texts) == 1:
            self.running_text = True
            cut = int(len(texts[0]) * (1 - val_fraction))
            if cut < 1 or cut == len(texts[0]):
                raise UserError(
                    f"a text of {len(texts[0])} characters is too short to hold a part out: give more text."
                )
            self.train, self.val = [texts[0][:cut]], [texts[0][cut:]]
            return
        held_out = choose_held_out([len(text) for text in texts], val_fraction, seed)
        self.train = [text for text, held in zip(texts, held_out, strict=True) if not held]
        self.val = [text for text, held in zip(texts, held_out, strict=True) if held]


def choose_held_out(sizes: list[int], val_fraction: float, seed: int) -> list[bool]:
    """Per document whether it is held out: at least one is, at least one is not, and in size about `val_fraction`.

    Documents are looked at in a random order, and one is taken when it brings the sum nearer to the wanted size.

    >>> choose_held_out([10] * 10, val_fraction=0.2, seed=0).count(True)
    2
    >>> choose_held_out([1000, 1], val_fraction=0.1, seed=0)
    [False, True]
    """
    wanted = val_fraction * sum(sizes)
    held_out = [False] * len(sizes)
    total, n_held = 0, 0
    for i in np.random.default_rng(seed).permutation(len(sizes)).tolist():
        if n_held < len(sizes) - 1 and abs(total + sizes[i] - wanted) < abs(total - wanted):
            held_out[i] = True
            total += sizes[i]
            n_held += 1
    if not n_held:  # every document is more than twice as large as the part wanted
        held_out[int(np.argmin(sizes))] = True
    return held_out


class _TrainingStream:
    """The training documents of a dataset too large for memory, without those held out, repeated or blank."""

    def __init__(self, texts: Iterable[str], held_out: frozenset[bytes], limit: int | None):
        self.texts, self.held_out, self.limit = texts, held_out, limit

    def __iter__(self) -> Iterator[str]:
        return _distinct(islice(self.texts, self.limit), set(self.held_out))


def _distinct(texts: Iterable[str], seen: set[bytes]) -> Iterator[str]:
    for text in texts:
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if digest not in seen and text.strip():
            seen.add(digest)
            yield text
