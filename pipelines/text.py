"""What goes to a terminal, a log or a page: in one line, printable, and without credentials."""

from __future__ import annotations

import re

_USER = re.compile(r"(://)(?:[^/\s]+|[^/\s@]*:[^\s@]*)@")  # a password may have a `/`
_ESCAPES = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-~])|\x9b[0-?]*[ -/]*[@-~]"
)
_SIGNED = re.compile(
    r"([?&](?:X-(?:Amz|Goog)-[\w-]+|AWSAccessKeyId|Signature|Key-Pair-Id|Policy|access_token|token|sig)=)[^&\s'\"]+",
    re.IGNORECASE,
)


def visible(text: str) -> str:
    r"""The text with everything that would break a line or steer a terminal written out, a newline as \n."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def without_escapes(text: str) -> str:
    """The text without the codes that colour it on a terminal, or steer one."""
    return _ESCAPES.sub("", text)


def redacted(text: str) -> str:
    """The text without user names, passwords and signatures in the addresses that it quotes."""
    return _SIGNED.sub(r"\1***", _USER.sub(r"\1***@", text))


def one_line(error: BaseException) -> str:
    """What went wrong, with its class, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def readable(name: str) -> str:
    r"""The name as valid Unicode: bytes that are not UTF-8 become \xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def clock(seconds: float) -> str:
    """A time span as a clock shows it: `0:09`, `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def counted(number: float, noun: str) -> str:
    """The number with its noun, which is in the plural but for one: `1 image`, `0 images`, `0.5 GPUs`."""
    said = str(number) if isinstance(number, int) else f"{number:g}"
    return f"{said} {noun}{'' if number == 1 else 's'}"
