"""A live server with the built-in model and its page, and Chromium in front of it."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.live import Live

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
READY = ".model.is-ready"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without a browser there is nothing to see."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and CHROMIUM is None:
            item.add_marker(pytest.mark.skip(reason="no Chromium is installed (on Debian: apt-get install chromium)"))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """One server for all tests."""
    settings = {"studio": "true", "preview_every": "1"}
    with Live(tmp_path_factory.mktemp("studio"), settings=settings) as live:
        live.wait_ready()
        yield live


@contextmanager
def open_chromium() -> Iterator[Any]:
    """The browser of this machine."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """One browser for all tests."""
    with open_chromium() as browser:
        yield browser


@pytest.fixture
def visit(server: Live, chromium: Any) -> Iterator[Callable[..., Any]]:
    """Opens the page in a browser of its own. At the end: no request has left the machine, no script has failed."""
    strange: list[str] = []
    errors: list[str] = []
    contexts = []

    def _visit(url: str = server.url, *, until: str = READY, **options: Any) -> Any:
        context = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("request", lambda request: strange.append(request.url) if not _is_here(request.url, url) else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url)
        page.wait_for_selector(until)
        return page

    yield _visit
    for context in contexts:
        context.close()
    assert (strange, errors) == ([], [])


def _is_here(asked: str, url: str) -> bool:
    return asked.startswith((f"{url}/", "data:", f"blob:{url}/"))
