"""A gallery's page, opened in Chromium: when its list can be used, by the browser's own clock."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.support.browser import opened_browser

IN_SIGHT = (
    "[...document.querySelectorAll('#list li')].filter(e => e.getBoundingClientRect().top < innerHeight)"
)
HAS_PICTURE = "t.every(e => e.querySelector('bdi').textContent && e.querySelector('img.here'))"
USABLE = f"(t => t.length && {HAS_PICTURE})({IN_SIGHT})"
DRAWN = f"(t => t.length && t.every(e => e.querySelector('canvas').width !== 300))({IN_SIGHT})"
WATCH = f"""
window.seen = {{}};
const look = () => {{
  if (!seen.usable && {USABLE}) seen.usable = performance.now();
  if (!seen.drawn && {DRAWN}) seen.drawn = performance.now();
  if (!seen.drawn || !seen.usable) setTimeout(look, 5);
}};
addEventListener("DOMContentLoaded", look);
"""
MOVE = """
const done = arguments[0], slider = document.getElementById('stability'), began = performance.now();
slider.value = Number(slider.value) + 10;
slider.dispatchEvent(new Event('input'));
requestAnimationFrame(() => setTimeout(() => done(performance.now() - began)));
"""


@dataclass(frozen=True, slots=True)
class Opening:
    """Seconds from the start of the navigation until the list could be used and its masks were drawn; and
    from a slider's move until all in sight was drawn anew.
    """

    usable: float
    drawn: float
    slider: float
    chromium: str


def opened(page: Path) -> Opening:
    """One opening in a browser that has seen nothing yet."""
    with opened_browser() as browser:
        browser.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": WATCH})
        browser.open(page.resolve().as_uri())
        browser.wait_for("seen.usable && seen.drawn", 60)
        seen = browser.run("return seen")
        slider = browser.driver.execute_async_script(MOVE)
        version = browser.driver.capabilities["browserVersion"]
        return Opening(seen["usable"] / 1000, seen["drawn"] / 1000, slider / 1000, version)
