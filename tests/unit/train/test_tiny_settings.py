"""The recipe's settings: what a file may change of them, and what cannot be is refused before anything runs."""

from dataclasses import replace
from pathlib import Path

import pytest

from daifuku.errors import InvalidRequest
from daifuku.train.tiny_settings import TinySettings, read_settings

HERE = Path("run")
EXAMPLE = Path(__file__).parents[3] / "examples" / "built_in" / "larger_world.toml"


def read(folder: Path, content: str) -> TinySettings:
    path = folder / "settings.toml"
    path.write_text(content)
    return read_settings(path, HERE, "cpu")


def test_an_empty_file_is_the_shipped_recipe(tmp_path: Path) -> None:
    assert read(tmp_path, "") == TinySettings(folder=HERE)


def test_a_file_changes_the_keys_that_it_names_and_no_other(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        """
        vae_from = "somewhere"
        num_workers = 15
        cuts.windows = [[13, 32], [37, 8]]
        networks.encoder.channels = [8, 32, 32, 32]
        world = {size = 96, num_frames = 37, fps = 24, fluid_share = 0.3, pace = true}
        dit_losses.given_share = 0.2

        [dit]
        num_steps = 20_000
        optimiser.lr = 2e-3
        """,
    )
    plain = TinySettings(folder=HERE)
    assert found == replace(
        plain,
        vae_from=Path("somewhere"),
        num_workers=15,
        cuts=replace(plain.cuts, windows=((13, 32), (37, 8))),
        networks=replace(plain.networks, encoder=replace(plain.networks.encoder, channels=(8, 32, 32, 32))),
        world=replace(plain.world, size=96, num_frames=37, fps=24, fluid_share=0.3, pace=True),
        dit_losses=replace(plain.dit_losses, given_share=0.2),
        dit=replace(plain.dit, num_steps=20_000, optimiser=replace(plain.dit.optimiser, lr=2e-3)),
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("dit.num_stepz = 3", "there is no dit.num_stepz: try dit.num_steps"),
        ("folder = 'elsewhere'", "there is no folder"),
        ("[dit.optimiser]\nlearning_rate = 1", "there is no dit.optimiser.learning_rate: there are lr, kind"),
        ("dit = 3", "dit: "),
        ("num_clips = 'many'", "num_clips: input should be a valid integer"),
        ("dit.optimiser.kind = 'sgd'", "dit.optimiser.kind: input should be 'muon', 'adamw'"),
        ("world.size = 100", "world.size is a multiple of 16, and not 100: try 96"),
        ("world.num_frames = 36", "world.num_frames is 6k.1, and not 36: try 37"),
        ("world.num_frames = 19", "at most world.num_frames=19, and not of 25: try 19"),
        ("cuts.windows = [[12, 8]]", "and not of 12: try 13"),
        ("networks.dit.video_mlp_width = 500", "try 512"),
        ("networks.decoder.channels = [8, 8, 8, 8]", "no networks have these sizes: num_channels .8."),
        ("networks.vocabulary = 71", "no room for the letters: try 72"),
        ("dit_losses.given_share = 2", "dit_losses.given_share: input should be less than or equal to 1"),
        ("cuts.windows = []", "cuts.windows: tuple should have at least 1 item"),
        ("clips_at_once = 0", "clips_at_once: input should be greater than or equal to 1"),
        ("num_clips = 50", "of 64 samples do not go with num_clips=50: try 50"),
        ("vae = [", "is no TOML file"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(content: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=said):
        read(tmp_path, content)


def test_the_example_is_a_world_of_its_own() -> None:
    found = read_settings(EXAMPLE, HERE, "cuda")
    assert (found.device, found.world.size, found.world.num_frames, found.world.fps) == ("cuda", 96, 37, 24)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="cannot be read"):
        read_settings(tmp_path / "none.toml", HERE, "cpu")
