"""A real Chromium without a window, for the tests of pages; skips where there is none."""

import shutil
import time
from contextlib import contextmanager

import pytest


class Browser:
    """As much of it as the tests need."""

    def __init__(self, driver) -> None:
        self.driver = driver

    def open(self, address: str) -> None:
        """Anew: an address that differs in its fragment alone would not be loaded."""
        self.driver.get("about:blank")
        self.driver.get(address)

    def run(self, script: str):
        return self.driver.execute_script(script)

    def wait_for(self, condition: str, seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while not self.run(f"return {condition}"):
            assert time.monotonic() < end, f"never true: {condition}"
            time.sleep(0.05)

    def point(self, selector: str, across: float, down: float, *, click: bool = False) -> None:
        """Move the mouse to a place in an element, in shares of its width and height."""
        from selenium.webdriver.common.action_chains import ActionChains

        element = self.driver.find_element("css selector", selector)
        size = element.size
        x, y = round((across - 0.5) * size["width"]), round((down - 0.5) * size["height"])
        actions = ActionChains(self.driver, duration=0).move_to_element_with_offset(element, x, y)
        (actions.click() if click else actions).perform()

    def press(self, *keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.common.keys import Keys

        for key in keys:
            ActionChains(self.driver, duration=0).send_keys(getattr(Keys, key)).perform()

    def messages(self) -> list[str]:
        """What the console has said since last asked."""
        return [entry["message"] for entry in self.driver.get_log("browser")]


@contextmanager
def opened_browser(width: int = 1440, height: int = 900):
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or chromedriver is None:
        pytest.skip("needs chromium and chromedriver (Debian: apt install chromium chromium-driver)")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        f"window-size={width},{height}",
    ):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
    try:
        yield Browser(driver)
    finally:
        driver.quit()
