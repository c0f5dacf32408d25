"""daifuku serve and daifuku studio, up to where a server would start."""

import sys
import webbrowser

import pytest

import daifuku.server.run

AT = "http://127.0.0.1:7"


@pytest.fixture
def started(monkeypatch):
    """What servers are started with."""
    seen = []
    opened = []

    def run(settings, listening, around):
        listening(AT)
        seen.append((settings, around, opened))

    monkeypatch.setattr(daifuku.server.run, "run", run)
    monkeypatch.setattr(webbrowser, "open", opened.append)
    return seen


def test_serve_starts_without_the_page(daifuku, started, tmp_path):
    run = daifuku("serve", "--data", tmp_path)
    ((settings, around, opened),) = started
    assert run.code == 0 and AT in run.out and not settings.studio and around is None and opened == []


def test_serve_has_the_page_where_the_setting_says_so(daifuku, started, monkeypatch):
    monkeypatch.setenv("DAIFUKU_STUDIO", "true")
    assert daifuku("serve").code == 0 and started[0][1] is not None


def test_studio_opens_the_page_unless_told_not_to(daifuku, started):
    assert f"{AT}/studio" in daifuku("studio").out
    daifuku("studio", "--no-browser")
    assert [one[0].studio for one in started] == [True, True] and started[0][2] == [f"{AT}/studio"]


def test_a_missing_library_is_named_with_what_brings_it(daifuku, started, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "daifuku.studio.mount", raising=False)
    run = daifuku("studio", "--no-browser")
    assert run.code == 2 and "daifuku[studio]" in run.err and "gradio" in run.err
    assert daifuku("serve").code == 0
