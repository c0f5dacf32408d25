# ruff: noqa: RUF001
"""Texts that have broken other programs: each is refused, or comes back letter by letter, and none reaches the log."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.server.fakes import House, house

MARKUP = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "</textarea><svg onload=alert(1)>",
    "&lt;b&gt; &amp; &#0; &nbsp;",
    "javascript:alert(1)",
    "[a](javascript:alert(1))",
    "![a](http://127.0.0.1/x.png)",
    "<!--#exec cmd='ls'-->",
    "<?xml version='1.0'?><!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]><a>&b;</a>",
    "{{7*7}}",
    "{% for a in b %}{% endfor %}",
    "${7*7}",
    "#{7*7}",
    "<%= 7*7 %>",
    "{{constructor.constructor('return this')()}}",
]
SHELL = [
    "$(reboot)",
    "`reboot`",
    "; rm -rf /",
    "| cat /etc/passwd",
    "&& id",
    "> /tmp/x",
    "\\x00",
    "%0a%0d",
    "../../../../etc/passwd",
    "..\\..\\windows",
    "file:///etc/passwd",
    "/dev/zero",
    "CON",
    "~root",
    "--help",
    "-rf",
    "@file",
    "!history",
    "*?[a-z]",
    "${IFS}",
]
SQL = [
    "' OR '1'='1",
    "'; DROP TABLE jobs; --",
    '" OR ""="',
    "1; PRAGMA user_version = 99",
    "') UNION SELECT * FROM answers --",
    "\\'; --",
    "%' AND 1=1 --",
    "NULL",
    "ATTACH DATABASE 'x' AS y",
    "randomblob(1e9)",
]
FORMATS = [
    "%s%s%s%n",
    "%(name)s",
    "{0}{1}{name}",
    "{0.__class__}",
    "%d %x %p",
    "\\u0041\\n\\t",
    "{}",
    "%",
    "{",
    "}",
    "{{",
    "$",
    "\\",
    "%%%",
    "{!r}",
]
LOGS = [
    "one\ntwo",
    "one\r\ntwo",
    "one\rtwo",
    '{"level": "error"}',
    '"}\n{"event": "forged"}',
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "\x1b[2J",
    "a\x08b",
    "tab\there",
    "\x0b\x0c",
    "\x7f",
    "\x85",
    "\u2028",
    "\u2029",
]
LETTERS = [
    "\u202eright to left",
    "\u2066isolated\u2069",
    "\u200bno width",
    "a\u200db",
    "\ufeffmark first",
    "\ufffd",
    "\ufffe",
    "\uffff",
    "é",
    "e\u0301",
    "ﬁ",
    "ß",
    "İ",
    "ı",
    "Å",
    "Ω",
    "日本語の動画",
    "видео",
    "فيديو",
    "וידאו",
    "วิดีโอ",
    "वीडियो",
    "👩‍👩‍👧‍👦",
    "🏳️‍🌈",
    "🇩🇪",
    "👍🏽",
    "𝕏",
    "\U0010ffff",
    "\U000e0001\U000e0020",
    "Z" + "\u0300" * 200,
    "\u0600" * 20,
    "\u3164",
    "\u00ad",
    "\u2060",
    "\ue000",
    "ａｂｃ",
    "①②③",
    "﷽",
    "ǅ",
    "\u1160\u115f",
]
LENGTHS = [
    "",
    " ",
    "\n",
    "\t \n",
    "a",
    "a" * 10,
    "a" * 1000,
    "a" * 10_000,
    "a" * 100_000,
    "a" * 1_000_000,
    "word " * 100,
    "word " * 255,
    "word " * 256,
    "word " * 300,
    "word " * 5000,
    "😀" * 5000,
    "\u0301" * 5000,
    "(" * 1000,
    "\\" * 1000,
    '"' * 1000,
    " " * 1000,
    "\n" * 1000,
    "a b" * 333,
    "." * 999,
    "日" * 2000,
]
NAMES = ["__class__", "constructor", "undefined", "null", "true", "NaN", "Infinity", "0", "-1", "1e309"]
PROMPTS = [*MARKUP, *SHELL, *SQL, *FORMATS, *LOGS, *LETTERS, *LENGTHS, *NAMES, "\0", "a\0b"]
BODIES = [b"\xff\xfe", b"\xc0\x80", b"\xed\xa0\x80", b"\\ud800", b"\\udc00\\ud800", b"\\u0000", b"\\x41", b'"', b"\n"]
"""Insides of a JSON string that no Python string makes."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with house(tmp_path_factory.mktemp("data"), settings={"max_queue": 1000}) as home:
        yield home


def test_every_hostile_prompt_is_refused_or_comes_back_letter_by_letter(home: House) -> None:
    assert len(PROMPTS) + len(BODIES) >= 150
    taken = 0
    for prompt in PROMPTS:
        answer = home.client.post("/v1/videos", json={"prompt": prompt, "seed": 1})
        assert answer.status_code == 202 or 400 <= answer.status_code < 500, repr(prompt[:40])
        if answer.status_code == 202:
            taken += 1
            assert home.client.get(f"/v1/videos/{answer.json()['id']}").json()["prompt"] == prompt
        elif len(prompt) > 8:
            assert prompt not in answer.text
    assert taken >= 100
    for content in BODIES:
        answer = home.client.post(
            "/v1/videos", content=b'{"prompt": "' + content + b'"}', headers={"Content-Type": "application/json"}
        )
        assert answer.status_code == 400, content


def test_no_prompt_reaches_the_log_and_every_line_is_one_object(home: House) -> None:
    lines = home.log.getvalue().splitlines()
    assert lines and all(isinstance(json.loads(line), dict) for line in lines)
    text = home.log.getvalue()
    assert not [prompt for prompt in PROMPTS if len(prompt.strip()) > 8 and prompt in text]


def test_what_stands_in_a_prompt_names_no_file(home: House) -> None:
    root: Path = home.service.folder.root
    names = [path.name for path in (root / "videos").iterdir()]
    assert names and all(name.startswith("video_") and name.removeprefix("video_").isalnum() for name in names)
    assert {path.name for path in root.iterdir()} <= {
        *("videos", "checkpoints", "temporary"),
        *("jobs.sqlite", "jobs.sqlite-wal", "jobs.sqlite-shm"),
    }
