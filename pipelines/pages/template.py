"""One HTML file out of a template and its parts, and what that file is allowed to do in a browser.

Nothing of a corpus is trusted. Its texts are escaped, control characters in them written out, JSON cannot end
the element it stands in, and a content security policy, which knows the page's one script by its digest, lets
nothing else run and nothing be fetched from elsewhere.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from ..text import visible

_PLACE = re.compile(r"\{\{(\w+)\}\}")


def part(name: str, folder: Path = Path(__file__).parent) -> str:
    """The text of a file that lies beside this module, or in another folder of the package."""
    return (folder / name).read_text("utf-8")


def fill(template: str, parts: Mapping[str, str]) -> str:
    """The template with each `{{name}}` replaced, in one pass: a part's own braces stay."""
    return _PLACE.sub(lambda place: parts[place[1]], template)


def policy(script: str = "", more_scripts: str = "", pictures: str = "data:") -> str:
    """The content security policy of a page: its inline `script`, further sources of scripts and pictures."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    scripts = f"'sha256-{digest}' {more_scripts}".rstrip() if script else "'none'"
    return (
        f"default-src 'none'; base-uri 'none'; form-action 'none'; img-src {pictures}; "
        f"style-src 'unsafe-inline'; script-src {scripts}"
    )


def text(value: str) -> str:
    """A text of the corpus as a page may hold it: without markup, control characters written out."""
    return escape(visible(value))


def definitions(values: Mapping[str, str]) -> str:
    """Names and values, for a `<dl>`."""
    return "".join(f"<div><dt>{text(name)}</dt><dd>{text(said)}</dd></div>" for name, said in values.items())


def embedded_json(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    return re.sub(r"[<>&]", lambda letter: f"\\u{ord(letter[0]):04x}", packed_json(value))


def packed_json(value: Any) -> str:
    """JSON in ASCII, without blanks."""
    return json.dumps(value, separators=(",", ":"))
