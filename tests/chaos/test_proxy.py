"""deploy/nginx.conf in front of a real server: events come as they happen, ranges, limits and TLS hold."""

import hashlib
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.chaos.live import LONG, Live

pytestmark = pytest.mark.slow

NGINX = Path(__file__).parents[2] / "deploy/nginx.conf"
KEY = "0123456789abcdef0123456789abcdef"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of the server that knows only the proxy."""
    if shutil.which("nginx") is None:
        pytest.skip("nginx is not installed: apt-get install nginx-light")
    folder, port = tmp_path_factory.mktemp("proxy"), free_port()
    keys = folder / "keys.toml"
    keys.write_text(
        f'[[key]]\nname = "alice"\nsha256 = "{hashlib.sha256(KEY.encode()).hexdigest()}"\n'
        'scopes = ["read", "write", "metrics"]\nrequests_per_minute = 6000\nmax_jobs = 10\n'
    )
    certificate = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=videos.example.org"]
    files = ["-keyout", str(folder / "tls.key"), "-out", str(folder / "tls.pem")]
    subprocess.run([*certificate, *files], check=True, capture_output=True)
    with Live(folder / "data", "--keys", str(keys)) as live:
        site = NGINX.read_text()
        for name, here in {
            "listen 443": f"listen 127.0.0.1:{port}",
            "listen [::]:443 ssl;": "",
            "/etc/ssl/videos.example.org.pem": str(folder / "tls.pem"),
            "/etc/ssl/videos.example.org.key": str(folder / "tls.key"),
            "http://127.0.0.1:8000": live.url,
        }.items():
            assert name in site
            site = site.replace(name, here)
        (folder / "site.conf").write_text(site)
        top = f"pid {folder}/pid; error_log {folder}/errors; events {{}}"
        (folder / "nginx.conf").write_text(f"{top} http {{ access_log off; include site.conf; }}")
        nginx = subprocess.Popen(["nginx", "-c", str(folder / "nginx.conf"), "-g", "daemon off;"])
        headers = {"Authorization": f"Bearer {KEY}", "Host": "videos.example.org"}
        trusted = ssl.create_default_context(cafile=str(folder / "tls.pem"))
        trusted.check_hostname = False
        with httpx.Client(base_url=f"https://127.0.0.1:{port}", headers=headers, verify=trusted, timeout=60) as client:
            live.wait_ready()
            _wait_for(port)
            yield client
        nginx.terminate()
        nginx.wait(10)


def _wait_for(port: int) -> None:
    for _ in range(500):
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise AssertionError("nginx does not listen")


def test_events_pass_as_they_happen_and_ranges_of_the_video_follow(proxied: httpx.Client) -> None:
    job_id = proxied.post("/v1/videos", json=LONG).json()["id"]
    seen: list[tuple[str, float]] = []
    with proxied.stream("GET", f"/v1/videos/{job_id}/events") as stream:
        seen += [(line[7:], time.monotonic()) for line in stream.iter_lines() if line.startswith("event: ")]
    first = next(at for name, at in seen if name == "running")
    assert seen[-1][0] == "done" and seen[-1][1] - first > 0.5, "what is buffered arrives all at once"
    content = f"/v1/videos/{job_id}/content"
    part = proxied.get(content, headers={"Range": "bytes=100-199"})
    assert part.status_code == 206 and part.content == proxied.get(content).content[100:200]


def test_a_body_that_is_too_large_and_the_figures_stay_outside(proxied: httpx.Client) -> None:
    assert proxied.post("/v1/videos", content=b"0" * 2_000_000).status_code == 413
    assert proxied.get("/metrics").status_code == 403
    assert proxied.get("/v1/videos", headers={"Authorization": "Bearer no"}).status_code == 401
