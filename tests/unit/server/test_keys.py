from hashlib import sha256
from pathlib import Path

import pytest

from daifuku.errors import InvalidRequest
from daifuku.server import keys as module
from daifuku.server.keys import ApiKey, Doorkeeper, read_keys

HASH = sha256(b"secret").hexdigest()


def test_a_file_of_keys_is_read(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(f'[[key]]\nname = "alice"\nsha256 = "{HASH}"\nscopes = ["read"]\nrequests_per_minute = 6\n')
    (key,) = read_keys(path)
    assert (key.name, key.scopes, key.requests_per_minute, key.max_jobs) == ("alice", {"read"}, 6, None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[[key]]",
        'key = "secret"',
        '[[key]]\nname = "a"\nsha256 = "secret"',
        f'[[key]]\nname = "a b"\nsha256 = "{HASH}"',
        f'[[key]]\nname = "a"\nsha256 = "{HASH}"\nscopes = ["all"]',
        f'[[key]]\nname = "a"\nsha256 = "{HASH}"\nmax_jobs = 0',
        f'[[key]]\nname = "a"\nsha256 = "{HASH}"\nadmin = true',
        f'[[key]]\nname = "a"\nsha256 = "{HASH}"\n' * 2,
    ],
)
def test_a_file_that_is_wrong_is_refused_without_its_content(tmp_path: Path, text: str) -> None:
    (tmp_path / "keys.toml").write_text(text)
    with pytest.raises(InvalidRequest) as caught:
        read_keys(tmp_path / "keys.toml")
    assert HASH not in str(caught.value) and "secret" not in str(caught.value)


def test_only_the_very_key_is_known() -> None:
    doorkeeper = Doorkeeper(keys=[ApiKey(name="a", sha256=HASH)])
    found = doorkeeper.find("Bearer secret")
    assert found is not None and found.name == "a"
    for header in (
        None,
        "",
        "Bearer",
        "Bearer ",
        "secret",
        "Basic secret",
        "Bearer secrets",
        f"Bearer {HASH}",
        "Bearer é",
    ):
        assert doorkeeper.find(header) is None


def test_a_key_may_ask_at_its_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(module, "monotonic", lambda: now)
    key, doorkeeper = ApiKey(name="a", sha256=HASH, requests_per_minute=60), Doorkeeper()
    assert [doorkeeper.wait_s(key) for _ in range(10)] == [0.0] * 10
    assert doorkeeper.wait_s(key) == pytest.approx(1.0)
    now = 1.0
    assert doorkeeper.wait_s(key) == 0.0
    assert doorkeeper.wait_s(key) > 0
    now = 1e6
    assert [doorkeeper.wait_s(key) > 0 for _ in range(11)] == [False] * 10 + [True]
