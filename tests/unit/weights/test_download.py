"""Downloads from a hub of our own: an HTTP server that answers what huggingface_hub asks."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import torch
from safetensors.torch import save

from daifuku.errors import CheckpointError, InvalidRequest, ModelNotFound, UnwritableOutput
from daifuku.weights import download as downloads
from daifuku.weights import transfer
from daifuku.weights.download import Progress, plan_download, run
from daifuku.weights.publications import PUBLISHED, Publication, choose, part_of, publications

COMMIT = "c0ffee" + "0" * 34
GENMO = "genmo/mochi-1-preview"


def weights(seed: int, size: int = 1000) -> bytes:
    return save({"x": torch.randn(size, generator=torch.Generator().manual_seed(seed))})


DIFFUSERS = {
    "model_index.json": b"{}",
    "README.md": b"hello",
    "dit.safetensors": weights(1),
    "scheduler/scheduler_config.json": b"{}",
    "text_encoder/config.json": b"{}",
    "text_encoder/model-00001-of-00002.safetensors": weights(2),
    "text_encoder/model-00002-of-00002.safetensors": weights(3),
    "text_encoder/model.safetensors.index.json": b"{}",
    "text_encoder/pytorch_model.bin": b"never",
    "tokenizer/spiece.model": b"model",
    "tokenizer/tokenizer_config.json": b"{}",
    "transformer/config.json": b"{}",
    "transformer/diffusion_pytorch_model.safetensors": weights(4),
    "transformer/diffusion_pytorch_model.bf16-00001-of-00002.safetensors": weights(5, 300_000),
    "transformer/diffusion_pytorch_model.bf16-00002-of-00002.safetensors": weights(6),
    "transformer/diffusion_pytorch_model.safetensors.index.bf16.json": b"{}",
    "vae/config.json": b"{}",
    "vae/diffusion_pytorch_model.safetensors": weights(7),
    "vae/diffusion_pytorch_model.bf16.safetensors": weights(8),
}
BF16 = [name for name in DIFFUSERS if "/" in name and ".bin" not in name and "model.safetensors" not in name]
BF16 += ["model_index.json", "text_encoder/model.safetensors.index.json"]
BF16 += ["transformer/diffusion_pytorch_model.safetensors.index.bf16.json"]


@dataclass
class Hub:
    """What the server has, how it misbehaves, and what it was asked for."""

    url: str = ""
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    status: int | None = None
    error_code: str = ""
    cut_after: int | None = None
    """Bytes of a file after which the connection closes, until it is None again."""
    pause_after: int | None = None
    """Bytes of a file after which nothing comes until `go`."""
    go: threading.Event = field(default_factory=threading.Event)
    ranges: bool = True
    elsewhere: str = ""
    """Where the content of files is, if it is not here."""
    tokens: set[tuple[bool, str | None]] = field(default_factory=set)
    """Whether a file was asked for elsewhere, and with what token."""
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    """Method, path and range of every request."""

    def file(self, path: str) -> bytes | None:
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
        return self.repos.get(found[1], {}).get(found[2]) if found else None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None: ...

    @property
    def hub(self) -> Hub:
        return self.server.hub  # type: ignore[attr-defined]

    def do_HEAD(self) -> None:
        self.answer(head=True)

    def do_GET(self) -> None:
        self.answer(head=False)

    def answer(self, head: bool) -> None:
        path, hub = unquote(urlsplit(self.path).path), self.hub
        hub.asked.append((self.command, path, self.headers.get("Range")))
        if hub.status is not None:
            self.reply(hub.status, b"", {"X-Error-Code": hub.error_code, "X-Error-Message": "no"}, head)
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/.+)?", path):
            self.about(found[1], head)
        elif (content := hub.file(path)) is not None:
            there = self.headers["Host"] in hub.elsewhere
            hub.tokens.add((there, self.headers.get("Authorization")))
            self.content(path, content, head, redirect=hub.elsewhere if not there else "")
        else:
            self.reply(404, b"", {"X-Error-Code": "RepoNotFound"}, head)

    def about(self, repo: str, head: bool) -> None:
        if repo not in self.hub.repos:
            self.reply(401, b"", {"X-Error-Code": "RepoNotFound"}, head)
            return
        siblings: list[dict[str, Any]] = []
        for name, content in self.hub.repos[repo].items():
            each: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": "0" * 40}
            if name.endswith(".safetensors"):
                sha256 = hashlib.sha256(content).hexdigest()
                each["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 130}
            siblings.append(each)
        text = json.dumps({"id": repo, "sha": COMMIT, "siblings": siblings}).encode()
        self.reply(200, text, {"Content-Type": "application/json"}, head)

    def content(self, path: str, content: bytes, head: bool, redirect: str) -> None:
        etag = hashlib.sha256(content).hexdigest()
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "X-Linked-Size": str(len(content))}
        headers |= {"X-Linked-Etag": f'"{etag}"', "Accept-Ranges": "bytes"}
        if redirect and path.endswith(".safetensors"):
            self.reply(302, b"", headers | {"Location": redirect + path}, head)
            return
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not wanted or not self.hub.ranges:
            self.reply(200, content, headers, head)
            return
        first, last = int(wanted[1]), int(wanted[2] or len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self.reply(206, content[first : last + 1], headers, head)

    def reply(self, status: int, body: bytes, headers: dict[str, str], head: bool) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if not head:
            cut, pause = self.hub.cut_after, self.hub.pause_after
            if pause is not None and len(body) > pause:
                self.wfile.write(body[:pause])
                self.hub.go.wait()
                body = body[pause:]
            self.wfile.write(body if cut is None else body[:cut])
            if cut is not None and len(body) > cut:
                self.close_connection = True


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = Hub(url=f"http://127.0.0.1:{server.server_port}", repos={GENMO: dict(DIFFUSERS)})
    server.hub = hub  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    constants = "huggingface_hub.constants"
    monkeypatch.setattr(f"{constants}.ENDPOINT", hub.url)
    monkeypatch.setattr(
        f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(f"{constants}.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(f"{constants}.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(transfer, "RETRY_S", 0)
    yield hub
    hub.go.set()
    wait_for_downloads()
    server.shutdown()
    server.server_close()


def paths(news: Iterator[Progress]) -> dict[str, Path]:
    return {each.item.name: each.path for each in news if each.path is not None}


def snapshot(tmp_path: Path, repo: str = GENMO) -> Path:
    return tmp_path / "cache" / f"models--{repo.replace('/', '--')}" / "snapshots" / COMMIT


def test_mochi_comes_into_the_cache_as_the_diffusers_folder_of_its_variant(hub: Hub, tmp_path: Path):
    found = paths(run(plan_download("mochi")))
    assert found.keys() == {f"{GENMO}/{name}" for name in BF16}
    for name in BF16:
        assert (snapshot(tmp_path) / name).read_bytes() == DIFFUSERS[name]


def test_a_download_of_what_is_there_takes_nothing_and_checks_it(hub: Hub, tmp_path: Path):
    assert plan_download("mochi").missing_bytes > 10**6
    first = paths(run(plan_download("mochi")))
    hub.asked.clear()
    again = plan_download("mochi")
    assert again.missing_bytes == 0 and paths(run(again)) == first
    assert not [path for method, path, _ in hub.asked if method == "GET" and not path.startswith("/api/")]
    damaged = snapshot(tmp_path) / "vae/diffusion_pytorch_model.bf16.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.resolve().write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"bf16\.safetensors is not the .* Delete {damaged.resolve()} and give"):
        paths(run(plan_download("mochi")))
    assert damaged.read_bytes() == content


def test_files_of_several_repositories_make_one_model_in_a_folder(hub: Hub, tmp_path: Path):
    names = [name for each in PUBLISHED["fp8"] for of_part in each.files.values() for name in of_part]
    hub.repos["Comfy-Org/mochi_preview_repackaged"] = {name: weights(9) for name in names}
    planned = plan_download("mochi", variant="fp8", folder=tmp_path / "fp8")
    assert planned.num_repos == 2
    paths(run(planned))
    assert {path.relative_to(tmp_path / "fp8").as_posix() for path in visible(tmp_path / "fp8")} == {
        "diffusion_models/mochi_preview_fp8_scaled.safetensors",
        "vae/mochi_vae.safetensors",
        "text_encoders/t5xxl_fp8_e4m3fn_scaled.safetensors",
        "tokenizer/spiece.model",
        "tokenizer/tokenizer_config.json",
    }
    hub.repos["imnotednamode/mochi-1-preview-mix-nf4"] = {"config.json": b"{}", "a.safetensors": weights(9)}
    paths(run(plan_download("mochi", variant="nf4", folder=tmp_path / "nf4")))
    found = {path.relative_to(tmp_path / "nf4").as_posix() for path in visible(tmp_path / "nf4")}
    assert {"transformer/config.json", "transformer/a.safetensors", "model_index.json"} <= found
    assert "transformer/diffusion_pytorch_model.bf16-00001-of-00002.safetensors" not in found


def visible(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and ".cache" not in path.parts]


@pytest.mark.parametrize("folder", [True, False])
@pytest.mark.parametrize("ranges", [True, False])
def test_an_interrupted_file_is_continued(hub: Hub, tmp_path: Path, folder: bool, ranges: bool):
    hub.ranges = ranges
    name = "transformer/diffusion_pytorch_model.bf16-00001-of-00002.safetensors"
    target = tmp_path / "models" if folder else None
    hub.cut_after = 400_000 if ranges else 900_000
    first = plan_download(f"{GENMO}/{name}", folder=target)
    if not ranges:
        with pytest.raises(ModelNotFound, match=r"cannot be downloaded .* the same command continues"):
            paths(run(first))
        hub.cut_after = None
    planned = plan_download(f"{GENMO}/{name}", folder=target)
    (path,) = paths(run(planned)).values()
    assert path.read_bytes() == DIFFUSERS[name]
    continued = [asked for method, _, asked in hub.asked if method == "GET" and asked and asked != "bytes=0-0"]
    assert continued[0] == ("bytes=400000-" if ranges else "bytes=900000-")
    assert list(tmp_path.rglob("*.incomplete")) == []


def test_who_stops_listening_keeps_what_came(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(transfer, "CHUNK_BYTES", 1000)
    name = "transformer/diffusion_pytorch_model.bf16-00001-of-00002.safetensors"
    hub.pause_after = 5000
    news = run(plan_download(f"{GENMO}/{name}"))
    assert any(each.num_bytes == 1000 for each in news)
    news.close()
    hub.go.set()
    wait_for_downloads()
    (draft,) = (tmp_path / "cache").rglob("*.incomplete")
    assert 1000 <= draft.stat().st_size <= 6000
    hub.pause_after = None
    (path,) = paths(run(plan_download(f"{GENMO}/{name}"))).values()
    assert path.read_bytes() == DIFFUSERS[name]


def wait_for_downloads() -> None:
    """The threads of a download that was given up end with their next piece."""
    for thread in threading.enumerate():
        if thread.name == "download":
            thread.join()


def test_a_token_is_shown_to_the_hub_and_to_nobody_else(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.elsewhere = hub.url.replace("127.0.0.1", "localhost")
    assert len(paths(run(plan_download("mochi", parts=["vae"])))) > 1
    assert hub.tokens == {(False, "Bearer hf_secret"), (True, None)}


def test_a_file_that_is_not_what_was_published_is_kept_apart_and_named(hub: Hub, tmp_path: Path):
    name = "vae/diffusion_pytorch_model.bf16.safetensors"
    planned = plan_download("mochi", parts=["vae"], folder=tmp_path / "models")
    hub.repos[GENMO][name] = DIFFUSERS[name][:-1] + b"?"
    with pytest.raises(CheckpointError, match=r"its sha256 is .*, and should be .*\. Delete .*\.incomplete and give"):
        paths(run(planned))
    assert not (tmp_path / "models" / name).exists()


def test_room_is_looked_for_first(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    usage = type(downloads.shutil.disk_usage(tmp_path))(10**9, 0, 10**6)
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UnwritableOutput, match=r"0\.0 GB are to be downloaded and .*/models has 0\.0 GB free"):
        plan_download("mochi", folder=tmp_path / "models")
    assert [path for _, path, _ in hub.asked if not path.startswith("/api/")] == []


@pytest.mark.parametrize(
    "status, code, message",
    [
        (401, "RepoNotFound", "no such repository, or it is private: check the name, or `hf auth login`"),
        (404, "RepoNotFound", "no such repository, or it is private"),
        (403, "GatedRepo", "its publisher asks for consent first: give it at http"),
        (404, "RevisionNotFound", "it has no revision 'v9'"),
        (418, "", "cannot be downloaded: .*418.*Check the network"),
    ],
)
def test_a_hub_that_refuses_is_explained(hub: Hub, status: int, code: str, message: str):
    hub.status, hub.error_code = status, code
    with pytest.raises(ModelNotFound, match=message):
        plan_download(GENMO, revision="v9")


def test_offline_nothing_is_asked_for(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotFound, match="HF_HUB_OFFLINE is set, so nothing is downloaded"):
        plan_download("mochi")
    assert hub.asked == []


def test_a_file_outside_its_repository_is_refused(hub: Hub):
    hub.repos[GENMO]["../../evil.safetensors"] = weights(9)
    with pytest.raises(ModelNotFound, match="a file outside its own folder"):
        plan_download("mochi")


def test_an_address_comes_into_a_folder_and_is_continued(hub: Hub, tmp_path: Path):
    address = f"{hub.url}/{GENMO}/resolve/main/vae/diffusion_pytorch_model.safetensors?download=true"
    content = DIFFUSERS["vae/diffusion_pytorch_model.safetensors"]
    hub.cut_after = 1500
    (path,) = paths(run(plan_download(address, folder=tmp_path / "models"))).values()
    assert path == tmp_path / "models" / "diffusion_pytorch_model.safetensors" and path.read_bytes() == content
    assert ("GET", urlsplit(address).path, "bytes=1500-") in hub.asked
    assert plan_download(address, folder=tmp_path / "models").missing_bytes == 0
    path.write_bytes(b"mine")
    with pytest.raises(UnwritableOutput, match="is another file of 4 bytes; move it away"):
        plan_download(address, folder=tmp_path / "models")


def test_an_address_that_gives_no_weights_is_refused(hub: Hub, tmp_path: Path):
    with pytest.raises(InvalidRequest, match=r"gives 'pytorch_model\.bin', and only \.safetensors and \.gguf"):
        plan_download(f"{hub.url}/{GENMO}/resolve/main/text_encoder/pytorch_model.bin", folder=tmp_path)
    hub.repos[GENMO]["page.safetensors"] = b"<html>please log in</html>"
    with pytest.raises(CheckpointError, match=r"page\.safetensors.* is damaged or cut short"):
        paths(run(plan_download(f"{hub.url}/{GENMO}/resolve/main/page.safetensors", folder=tmp_path)))
    assert not (tmp_path / "page.safetensors").exists()
    with pytest.raises(ModelNotFound, match="404"):
        plan_download(f"{hub.url}/{GENMO}/resolve/main/none.safetensors", folder=tmp_path)


def test_a_page_of_the_hub_stands_for_its_file(hub: Hub):
    name = "vae/diffusion_pytorch_model.safetensors"
    (item,) = plan_download(f"https://huggingface.co/{GENMO}/blob/main/{name}").items
    assert item.name == f"{GENMO}/{name}"


@pytest.mark.parametrize("model", ["moshi", "a/../b", "/models/a"])
def test_a_name_that_stands_for_nothing_is_refused(hub: Hub, model: str):
    with pytest.raises(ModelNotFound):
        plan_download(model)


@pytest.mark.parametrize("variant", PUBLISHED)
@pytest.mark.parametrize("parts", [["dit"], ["vae"], ["text"], ["dit", "vae", "text"]])
def test_every_variant_of_mochi_has_every_part(variant: str, parts: list[str]):
    found = {part for each in publications("mochi", variant, parts) for part in each.parts}
    assert found - {"tokenizer"} == set(parts)


def test_an_unknown_variant_or_part_is_refused():
    with pytest.raises(InvalidRequest, match="mochi has no variant 'int3'; there are bf16, fp8, nf4, fast"):
        plan_download("mochi", variant="int3")
    with pytest.raises(InvalidRequest, match="a model has no part 'lora': its parts are dit, vae, text"):
        plan_download("mochi", parts=["lora"])


KIJAI = [
    "mochi_preview_dit_bf16.safetensors",
    "mochi_preview_dit_fp8_e4m3fn.safetensors",
    "mochi_preview_dit_GGUF_Q8_0.safetensors",
    "mochi_preview_vae_decoder_bf16.safetensors",
]


@pytest.mark.parametrize(
    "variant, parts, names, expected",
    [
        ("fp8", ("dit",), KIJAI, [KIJAI[1]]),
        ("q8_0", ("dit", "vae", "text"), KIJAI, [KIJAI[2], KIJAI[3]]),
        (None, ("vae",), KIJAI, [KIJAI[3]]),
        (None, ("dit",), ["config.json", "diffusion_pytorch_model.safetensors", "README.md"], None),
        (None, ("dit", "vae"), ["dit.safetensors", "encoder.safetensors", "decoder.safetensors"], None),
        (None, ("dit",), [f"dit-0000{i}-of-00002.gguf" for i in (1, 2)], None),
    ],
)
def test_single_files_are_chosen_by_part_and_variant(
    variant: str | None, parts: tuple[str, ...], names: list[str], expected: list[str] | None
):
    found = choose(Publication(repo="a/b", variant=variant, parts=parts), names)
    assert sorted(found) == sorted(expected or [name for name in names if name != "README.md"])


@pytest.mark.parametrize(
    "variant, parts, names, message",
    [
        (
            None,
            ("dit",),
            KIJAI,
            "has several files of the dit: .* or name one: daifuku download",
        ),
        ("int3", ("vae",), KIJAI, "has nothing called 'int3'"),
        (None, ("text",), KIJAI, "none of what was asked for"),
        (None, ("text",), ["config.json", "pytorch_model.bin"], "daifuku download mochi --only text"),
        ("fp8", ("dit",), list(DIFFUSERS), "has no variant 'fp8'; it has bf16"),
        (None, ("vae",), ["model_index.json", "transformer/a.safetensors"], "has no vae; it has transformer/"),
    ],
)
def test_a_choice_that_is_not_clear_says_what_there_is(
    variant: str | None, parts: tuple[str, ...], names: list[str], message: str
):
    with pytest.raises(InvalidRequest, match=message):
        choose(Publication(repo="a/b", variant=variant, parts=parts), names)


@pytest.mark.parametrize(
    "name, part",
    [
        ("split_files/text_encoders/t5xxl_fp16.safetensors", "text"),
        ("mochi_vae.safetensors", "vae"),
        ("encoder.safetensors", "vae"),
        ("mochi-1-preview-Q4_K_M.gguf", "dit"),
    ],
)
def test_a_part_is_told_by_the_name(name: str, part: str):
    assert part_of(name) == part
