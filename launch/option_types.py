"""Types of what the command line takes."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
"""A DNS label (RFC 1123), as Kubernetes names namespaces."""
_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_IMAGE = re.compile(
    rf"(?P<name>(?:[a-zA-Z0-9.-]+(?::[0-9]+)?/)?{_PART}(?:/{_PART})*)"
    r"(?::(?P<tag>[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,127}))?(?P<digest>@sha256:[0-9a-f]{64})?"
)


def at_least(least: int) -> Callable[[str], int]:
    """A type of the command line's: a whole number that is not smaller."""

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number of at least {least}")
        return int(text)

    return number


def namespace(text: str) -> str:
    """A type of the command line's: the name of a namespace of Kubernetes."""
    if not _LABEL.fullmatch(text):
        nearest = re.sub(r"[^a-z0-9-]", "-", text.lower())[:63].strip("-")
        raise argparse.ArgumentTypeError(
            f"got {text!r}, expected 1 to 63 lower-case letters, digits and hyphens, no hyphen at either end"
            + (f"; write {nearest}" if nearest else "")
        )
    return text


def pinned_image(text: str) -> str:
    """A type of the command line's: an image that is the same one on every node and at every attempt."""
    found = _IMAGE.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(
            f"got {text!r}, expected [HOST/]NAME:TAG or [HOST/]NAME@sha256:DIGEST, NAME in lower case"
        )
    if found["digest"] is None and found["tag"] in (None, "latest"):
        raise argparse.ArgumentTypeError(
            f"got {text!r}, expected a tag other than latest, or a digest: pods of one run must not differ; push it as "
            f"{found['name']}:VERSION and write that"
        )
    return text
