"""One browser for all tests here. Where the machine has none the run says so at its end, in red."""

from __future__ import annotations

import pytest
from browser_session import Browser, BrowserError
from comfy_page import ComfyPage


@pytest.fixture(scope="session")
def browser(summary_note):
    try:
        one = Browser()
        one.__enter__()
    except BrowserError as error:
        reason = str(error).strip()
        summary_note(f"NOT RUN: the browser tests. {reason}")
        pytest.skip(reason)
    version = one.call("Browser.getVersion")
    summary_note(f"browser: {version['product']} ({version['userAgent'].split('Gecko) ')[-1]})")
    yield one
    one.close()


@pytest.fixture(scope="session", params=[False, True], ids=["classic nodes", "Vue nodes"])
def page(request, browser, host) -> ComfyPage:
    """ComfyUI's page with either way of drawing nodes; users switch between the two."""
    return ComfyPage(browser, host, vue_nodes=request.param)
