"""Replicate's own client, against a server as it is started."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from replicate.client import Client
from replicate.exceptions import ReplicateError
from replicate.webhook import Webhooks, WebhookSigningSecret

from tests.chaos.live import LONG, SHORT, Live
from tests.unit.server.receiver import Receiver, receiving

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> Iterator[Live]:
    hosts = json.dumps([f"127.0.0.1:{receiver.port}"])
    settings = {"webhook_hosts": hosts, "webhook_private": "true", "webhook_secret": SECRET}
    with Live(tmp_path_factory.mktemp("data"), settings=settings) as live:
        live.wait_ready()
        yield live


@pytest.fixture
def client(live: Live) -> Client:
    client = Client(base_url=live.url, api_token="none is needed")
    client.poll_interval = 0.05
    return client


def test_the_client_creates_waits_and_finds_the_video(client: Client, live: Live, tmp_path: Path) -> None:
    prediction = client.predictions.create(version="daifuku-tiny", input=SHORT | {"seed": 7})
    assert prediction.status in ("starting", "processing")
    prediction.wait()
    assert (prediction.status, prediction.error) == ("succeeded", None)
    assert prediction.input is not None and prediction.input["seed"] == 7
    assert live.http.get(str(prediction.output)).content[4:8] == b"ftyp"
    held = client.predictions.create(version="daifuku-tiny", input=SHORT | {"seed": 7}, wait=30)
    assert held.status == "succeeded" and held.metrics is not None and held.metrics["predict_time"] > 0
    assert client.predictions.get(held.id).output == held.output


def test_the_client_sees_how_far_it_is_and_cancels(client: Client) -> None:
    prediction = client.predictions.create(version="daifuku-tiny", input=LONG)
    while prediction.progress is None or not prediction.progress.percentage:
        assert prediction.status in ("starting", "processing")
        prediction.reload()
    assert 0 < prediction.progress.percentage < 1 and prediction.progress.total > 0
    prediction.cancel()
    assert prediction.status == "canceled"


def test_the_client_checks_the_signature_of_a_webhook(client: Client, receiver: Receiver) -> None:
    prediction = client.predictions.create(
        version="daifuku-tiny", input=SHORT, webhook=receiver.url, webhook_events_filter=["completed"]
    )
    (heard,) = receiver.wait(1, 30)
    Webhooks.validate(
        headers=heard.headers, body=heard.content.decode(), secret=WebhookSigningSecret(key=SECRET), tolerance=60
    )
    assert (heard.json["id"], heard.json["status"]) == (prediction.id, "succeeded")


def test_the_client_understands_what_is_wrong(client: Client) -> None:
    with pytest.raises(ReplicateError):
        client.predictions.create(version="daifuku-tiny", input={"prompt": "x", "num_outputs": 2})
    with pytest.raises(ReplicateError):
        client.predictions.create(version="another", input=SHORT)
    with pytest.raises(ReplicateError):
        client.predictions.get("nothing")
