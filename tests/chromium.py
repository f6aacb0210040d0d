"""A real browser for the tests marked ``browser``.

Needs Chromium and chromedriver (Debian: ``apt-get install chromium chromium-driver``) and ``pip install selenium``.
The environment variable CHROME names another browser that chromedriver fits.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def chromium(folder: Path, *flags: str) -> Iterator[Any]:
    """A driver of a fresh headless Chromium whose profile and downloads lie in ``folder``."""
    webdriver = pytest.importorskip("selenium.webdriver")
    program = shutil.which(os.environ.get("CHROME", "chromium"))
    server = shutil.which("chromedriver")
    if program is None or server is None:
        pytest.skip("no chromium or no chromedriver on the path")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (
        *("--headless", "--no-sandbox", "--no-first-run", "--hide-scrollbars", "--window-size=900,700"),
        *("--disable-quic", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *(f"--user-data-dir={folder / 'profile'}", *flags),
    ):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(folder)})
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(server))
    driver.set_script_timeout(60)
    try:
        yield driver
    finally:
        driver.quit()
