"""Plans for the published model on graphics cards of every size, without any of them."""

from dataclasses import fields, replace

import pytest
import torch

from daifuku.config import DecoderConfig, DiTConfig, RuntimeConfig
from daifuku.errors import InvalidRequest, NotEnoughMemory
from daifuku.request import GenerateRequest, LatentShape
from daifuku.runtime import estimate
from daifuku.runtime.estimate import Estimator, ModelSizes, Workload
from daifuku.runtime.machine import Machine
from daifuku.runtime.planner import COMFORT, Plan, Planner, filled

GIB = 2**30
PUBLISHED = ModelSizes(dit=DiTConfig(), decoder=DecoderConfig(), text_parameters=4_762_000_000, text_tokens=256)
APPROXIMATE = {"quantise": "none", "quantise_text": "none", "decoding": "streaming"}


@pytest.fixture(autouse=True)
def a_fixed_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "multiply_rate", lambda device, dtype: 150e12)


def planner(gib: float, *, device: str = "cuda", wanted: RuntimeConfig | None = None, num_frames: int = 163) -> Planner:
    request = GenerateRequest(prompt="", seed=1, num_frames=num_frames).resolved()
    machine = Machine(device=torch.device(device), free_bytes=int(gib * GIB), host_free_bytes=64 * GIB)
    return Planner(
        estimator=Estimator(sizes=PUBLISHED, work=Workload.of(request, 1), machine=machine),
        comfort=filled(RuntimeConfig(dtype="bfloat16"), COMFORT),
        wanted=wanted or RuntimeConfig(),
        base_bytes=0,
    )


@pytest.mark.parametrize("gib", [141, 80, 48, 24, 16, 12, 8])
def test_every_card_from_8_gib_up_gets_a_plan_that_fits_and_is_exact(gib: int) -> None:
    plan = planner(gib).choose()
    assert plan.fits and plan.peak_bytes <= gib * GIB
    assert {name: getattr(plan.runtime, name) for name in APPROXIMATE} == APPROXIMATE


def test_less_memory_never_makes_a_plan_faster_or_larger() -> None:
    plans = [planner(gib).choose() for gib in (80, 24, 16, 8)]
    assert [plan.seconds for plan in plans] == sorted(plan.seconds for plan in plans)
    assert [plan.peak_bytes for plan in plans] == sorted((plan.peak_bytes for plan in plans), reverse=True)


@pytest.mark.parametrize(("gib", "residency"), [(80, "resident"), (24, "offload"), (12, "stream")])
def test_networks_leave_the_device_as_far_as_they_must(gib: int, residency: str) -> None:
    assert planner(gib).choose().runtime.residency == residency


def test_a_plan_settles_every_setting_but_the_one_that_is_measured() -> None:
    runtime = planner(16).choose().runtime
    assert [each.name for each in fields(RuntimeConfig) if getattr(runtime, each.name) is None] == ["batch_guidance"]


@pytest.mark.parametrize(("side", "may_batch"), [(64, True), (480, False)])
def test_only_where_a_pass_is_short_there_is_room_for_both_captions(side: int, may_batch: bool) -> None:
    work = Workload(shape=LatentShape.from_pixels(7, side, side), num_captions=2, num_sigmas=2)
    made = planner(80)
    made = replace(made, estimator=replace(made.estimator, work=work))
    apart, together, left_open = (
        made.evaluate(RuntimeConfig(batch_guidance=way)).stages[1].activation_bytes for way in (False, True, None)
    )
    assert left_open == (together if may_batch else apart) and apart < together


def test_how_busy_a_machine_is_does_not_decide_whether_captions_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    work = Workload(shape=LatentShape.from_pixels(7, 64, 64), num_captions=2, num_sigmas=2)
    for rate in (1e5, 1e20):
        monkeypatch.setattr(estimate, "multiply_rate", lambda device, dtype, rate=rate: rate)
        made = planner(80)
        made = replace(made, estimator=replace(made.estimator, work=work))
        together, left_open = (
            made.evaluate(RuntimeConfig(batch_guidance=way)).stages[1].activation_bytes for way in (True, None)
        )
        assert left_open == together


def test_on_a_host_small_tensors_take_more_than_their_size() -> None:
    """The heap keeps what is free between its blocks."""
    host, card = (
        planner(80, device=device, num_frames=7).evaluate(RuntimeConfig()).stages[0] for device in ("cpu", "cuda")
    )
    assert host.activation_bytes == 2.5 * card.activation_bytes


def test_tiles_are_blended_in_a_clip_of_float32_in_the_hosts_memory() -> None:
    made = planner(80, num_frames=7)
    plans = [made.evaluate(RuntimeConfig(decoding="tiled", tile=tile)) for tile in (16, 106)]
    tiled, one_tile = (plan.stages[2] for plan in plans)
    assert tiled.host_bytes - one_tile.host_bytes == 4 * 3 * 7 * 480 * 848
    assert tiled.activation_bytes < one_tile.activation_bytes


def test_what_is_wanted_is_kept() -> None:
    plan = planner(80, wanted=RuntimeConfig(residency="stream", decoding="tiled", tile=16)).choose()
    assert (plan.runtime.residency, plan.runtime.decoding, plan.runtime.tile) == ("stream", "tiled", 16)


def test_what_cannot_fit_is_refused_with_a_way_out() -> None:
    with pytest.raises(NotEnoughMemory, match=r"0\.9 GiB.*fewer frames"):
        planner(1).choose()


def test_after_running_out_of_memory_the_next_plan_needs_less_and_the_last_has_none() -> None:
    made = planner(24)
    plan: Plan | None = made.choose()
    sizes: list[int] = []
    while plan is not None:
        sizes.append(plan.peak_bytes)
        plan = made.below(plan)
    assert len(sizes) > 3 and sizes == sorted(set(sizes), reverse=True)


def test_tabulated_modulations_spare_a_quarter_of_the_weights() -> None:
    with_linears, with_table = (planner(80).evaluate(RuntimeConfig(tabulate=way)).stages[1] for way in (False, True))
    assert 0.72 < with_table.weight_bytes / with_linears.weight_bytes < 0.76


def test_streaming_keeps_two_of_the_blocks_on_the_device() -> None:
    whole, streamed = (planner(80).evaluate(RuntimeConfig(residency=way)).stages[1] for way in ("offload", "stream"))
    assert streamed.weight_bytes < whole.weight_bytes / 10 and streamed.host_bytes == whole.host_bytes


def test_guidance_in_one_pass_doubles_the_activations_but_not_the_time() -> None:
    apart, together = (planner(80).evaluate(RuntimeConfig(batch_guidance=way)).stages[1] for way in (False, True))
    assert together.activation_bytes > 1.7 * apart.activation_bytes
    assert together.seconds == pytest.approx(apart.seconds, rel=0.01)


def test_a_slow_copy_sets_the_pace_of_short_clips_that_stream() -> None:
    streamed = planner(12, num_frames=1).evaluate(RuntimeConfig(residency="stream")).stages[1]
    resident = planner(12, num_frames=1).evaluate(RuntimeConfig(residency="offload")).stages[1]
    assert streamed.seconds > resident.seconds


def test_only_a_long_run_on_a_gpu_is_compiled_for() -> None:
    assert planner(80).choose().runtime.compile is True
    assert planner(80, num_frames=1).choose().runtime.compile is False
    assert planner(80, device="cpu").choose().runtime.compile is False
    assert planner(80, wanted=RuntimeConfig(compile=False)).choose().runtime.compile is False


def test_alternatives_differ_from_the_plan_and_say_whether_they_fit() -> None:
    made = planner(12)
    plan = made.choose()
    others = dict(made.alternatives(plan))
    assert all(other.runtime != plan.runtime for other in others.values())
    assert not others["every network on the device"].fits and not others["decoding all at once"].fits


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"residency": "offlod"}, "Try offload"),
        ({"dtype": "fp16"}, "float16"),
        ({"tile": 2}, "Try 8"),
        ({"compile": "yes"}, "compile='yes'"),
        ({"tile": True}, "tile=True"),
    ],
)
def test_a_wrong_setting_is_refused_with_one_that_works(values: dict[str, object], complaint: str) -> None:
    with pytest.raises(InvalidRequest, match=complaint):
        RuntimeConfig(**values)  # pyright: ignore[reportArgumentType]


def test_the_first_that_has_a_setting_decides_it() -> None:
    chosen = filled(RuntimeConfig(tile=8), RuntimeConfig(tile=16, compile=True), COMFORT)
    assert chosen == replace(COMFORT, tile=8, compile=True)
