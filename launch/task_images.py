"""Images of prompts: the forms in which rows hold them, and whether they can be read. None is decoded here."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from funicular.launch.datasets import DataError, Row
from funicular.rewards.types import ImagePart, Message, TaskImage, TextPart

_VALUE_KEYS = ("image", "image_url", "path", "url", "base64")
"""Where an image part may say what its image is: the spellings of transformers and of OpenAI."""
_EXPECTED = "a path beside the data file, a data: URI, or the bytes of an image file"


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundImage:
    """An image of a row."""

    image: TaskImage
    identity: str
    """What makes it the same image in every run and on every machine: its path as the data has it, or a hash."""


def listed_images(value: Any, row: Row, key: str) -> list[FoundImage]:
    """The images of a column: none, one, or a list.

    Raises:
        DataError: one of them is missing or cannot be read; names key, row and image.
    """
    values = value if isinstance(value, list) else [] if value is None else [value]
    return [found_image(item, row, f"{key}: {row.place} image {n}") for n, item in enumerate(values, start=1)]


def found_image(value: Any, row: Row, place: str) -> FoundImage:
    """One image: a path, a data: URI, bytes, or bytes and path as the package datasets stores them.

    Args:
        place: where it stands, for messages.

    Raises:
        DataError: it is missing or cannot be read.
    """
    if isinstance(value, dict):
        value = value.get("url") or value.get("bytes") or value.get("path")
    if isinstance(value, str) and value.startswith("data:"):
        value = _from_base64(value.partition(",")[2], place)
    if isinstance(value, bytes):
        found = FoundImage(
            image=TaskImage(name=place.rpartition(": ")[2], source=value), identity=hashlib.sha256(value).hexdigest()
        )
    elif isinstance(value, str) and value:
        found = FoundImage(image=_file(value, row, place), identity=value)
    else:
        raise DataError(f"{place} is {value!r:.80}; expected {_EXPECTED}")
    _refuse_unreadable(found.image.source, place)
    return found


def is_part(item: Any) -> bool:
    """Whether an item of a message's content is text or an image."""
    if not isinstance(item, dict):
        return False
    if item.get("type") == "text":
        return isinstance(item.get("text"), str)
    return item.get("type") in ("image", "image_url")


def with_images(
    messages: list[dict[str, Any]], listed: list[FoundImage], row: Row, key: str
) -> tuple[tuple[Message, ...], list[FoundImage]]:
    """Messages as chat templates read them, and their images in order.

    An image part that does not say what its image is takes the next of `listed`. Where messages have no image parts,
    those of `listed` stand before the first user message's text, as in TRL.

    Raises:
        DataError: image parts and listed images do not go together.
    """
    left = list(listed)
    found: list[FoundImage] = []
    content: list[str | list[TextPart | ImagePart]] = []
    for message in messages:
        said = message["content"]
        content.append(said if isinstance(said, str) else list(_parts(said, left, found, row, key)))
    if listed and not found:
        first = next((n for n, message in enumerate(messages) if message["role"] == "user"), None)
        if first is None:
            raise DataError(f"{key}: {row.place} has images and no message of the user")
        text = content[first]
        rest: list[TextPart | ImagePart] = [TextPart(type="text", text=text)] if isinstance(text, str) else text
        content[first] = [*map(_part, listed), *rest]
        found = listed
    elif left:
        raise DataError(f"{key}: {row.place} has {len(left)} images more than its messages have places for")
    return tuple(Message(role=m["role"], content=c) for m, c in zip(messages, content, strict=True)), found


def _parts(
    content: list[dict[str, Any]], left: list[FoundImage], found: list[FoundImage], row: Row, key: str
) -> Iterator[TextPart | ImagePart]:
    for part in content:
        if part["type"] == "text":
            yield TextPart(type="text", text=part["text"])
            continue
        place = f"{key}: {row.place} image {len(found) + 1}"
        named = next((name for name in _VALUE_KEYS if part.get(name) is not None), None)
        if named is not None:
            value = _from_base64(part[named], place) if named == "base64" else part[named]
            found.append(found_image(value, row, place))
        elif left:
            found.append(left.pop(0))
        else:
            raise DataError(f"{place}: the message has a place for it, and data.images_column has none left")
        yield _part(found[-1])


def _part(found: FoundImage) -> ImagePart:
    return ImagePart(type="image", name=found.image.name)


def _file(value: str, row: Row, place: str) -> TaskImage:
    if value.startswith(("http://", "https://")):
        raise DataError(f"{place} is {value:.80}; nothing is fetched from the web: expected {_EXPECTED}")
    path = (row.folder or Path.cwd()) / Path(value.removeprefix("file://")).expanduser()
    if not path.is_file():
        raise DataError(f"{place} is {value}; there is no such file {path}; expected {_EXPECTED}")
    return TaskImage(name=path.name, source=str(path.resolve()))


def _from_base64(text: Any, place: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise DataError(f"{place} is not base64: {error}") from None


def _refuse_unreadable(source: str | bytes, place: str) -> None:
    """Read the header, and a PNG's checksums. What is broken further on fails its group when it is decoded."""
    from PIL import Image

    try:
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source) as image:
            image.verify()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        where = "" if isinstance(source, bytes) else f" {source}"
        raise DataError(f"{place}:{where} cannot be read as an image: {error}") from None
