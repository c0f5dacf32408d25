import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from daifuku.server.targets import BadTarget, LookUp, Policy, parse_target
from tests.unit.server.hostile import HOSTILE_URLS, REBOUND


def knows(*addresses: str) -> LookUp:
    async def _look_up(host: str, port: int) -> Sequence[str]:
        return addresses

    return _look_up


PAGE = (Path(__file__).parents[3] / "docs" / "serving.md").read_text()


def test_there_are_as_many_hostile_urls_and_names_as_the_page_says() -> None:
    assert len({*map(repr, HOSTILE_URLS)}) == len(HOSTILE_URLS) and len({*REBOUND}) == len(REBOUND)
    assert f"{len(HOSTILE_URLS)} hostile URLs and {len(REBOUND)} names" in " ".join(PAGE.split())


@pytest.mark.parametrize("url", HOSTILE_URLS, ids=repr)
def test_a_hostile_url_is_refused_before_any_name_server_is_asked(url: object) -> None:
    with pytest.raises(BadTarget) as caught:
        Policy(anywhere=True).check(url)
    assert not isinstance(url, str) or len(url) < 12 or url not in str(caught.value)


@pytest.mark.parametrize("address", REBOUND)
def test_a_name_that_means_an_address_that_is_not_public_is_refused(address: str) -> None:
    for found in ((address,), ("8.8.8.8", address)):
        policy = Policy(anywhere=True, look_up=knows(*found))
        target = policy.check("https://rebound.example.org/hook")
        with pytest.raises(BadTarget, match="not public"):
            asyncio.run(policy.address(target))


@pytest.mark.parametrize(
    "url, host, port, path",
    [
        ("https://example.org", "example.org", 443, "/"),
        ("HTTPS://Example.ORG/a?b=c", "example.org", 443, "/a?b=c"),
        ("http://hooks.example.org:8080/%41", "hooks.example.org", 8080, "/%41"),
        ("https://8.8.8.8/", "8.8.8.8", 443, "/"),
        ("https://[2606:4700::1111]:8443/", "2606:4700::1111", 8443, "/"),
        ("https://xn--bcher-kva.example/", "xn--bcher-kva.example", 443, "/"),
    ],
)
def test_a_public_address_is_understood(url: str, host: str, port: int, path: str) -> None:
    target = Policy(anywhere=True).check(url)
    assert (target.host, target.port, target.path) == (host, port, path)


def test_the_checked_address_is_the_one_to_connect_to() -> None:
    policy = Policy(anywhere=True, look_up=knows("8.8.8.8", "1.1.1.1"))
    assert asyncio.run(policy.address(policy.check("https://example.org/"))) == "8.8.8.8"


def test_nothing_is_sent_anywhere_unless_somebody_says_so() -> None:
    with pytest.raises(BadTarget, match="no webhooks"):
        Policy().check("https://example.org/")


def test_a_named_host_is_meant_with_its_usual_port_or_the_one_that_is_named() -> None:
    policy = Policy(hosts=frozenset({"hooks.example.org", "other.example.org:8443"}))
    for url in ("https://hooks.example.org/a", "http://HOOKS.example.org/", "https://other.example.org:8443/"):
        policy.check(url)
    for url in (
        "https://hooks.example.org:8443/",
        "https://other.example.org/",
        "https://example.org/",
        "https://hooks.example.org.evil.example/",
        "https://evil.example/hooks.example.org",
        "https://xhooks.example.org/",
    ):
        with pytest.raises(BadTarget):
            policy.check(url)


def test_a_named_host_may_be_private_only_where_that_is_said_too() -> None:
    named, url = frozenset({"receiver:9000", "127.0.0.1:9000"}), "http://receiver:9000/"
    strict = Policy(hosts=named, look_up=knows("10.0.0.5"))
    with pytest.raises(BadTarget):
        asyncio.run(strict.address(strict.check(url)))
    with pytest.raises(BadTarget):
        strict.check("http://127.0.0.1:9000/")
    mild = Policy(hosts=named, private=True, anywhere=True, look_up=knows("10.0.0.5"))
    assert asyncio.run(mild.address(mild.check(url))) == "10.0.0.5"
    mild.check("http://127.0.0.1:9000/")
    other = mild.check("http://other.example.org:9000/")
    with pytest.raises(BadTarget):
        asyncio.run(mild.address(other))


def test_a_host_header_has_the_port_where_it_is_not_the_usual_one() -> None:
    shown = [
        parse_target(url).shown_host for url in ("https://a.org:443/", "http://a.org:443/", "http://[2606::1]:81/")
    ]
    assert shown == ["a.org", "a.org:443", "[2606::1]:81"]
