"""The networks without a pipeline: a video into latents and back, and one velocity of the transformer."""

from pathlib import Path

import torch

import daifuku
from daifuku.runtime.build import BUILT_IN_FOLDER

# The folder, file or hub id of any Mochi model does here.
model: Path = BUILT_IN_FOLDER
vae = daifuku.load_vae(model)
dit = daifuku.load_dit(model)

with torch.inference_mode():
    # [b, 3, T, H, W] in [-1, 1]; T is 6k + 1, sides are multiples of 16.
    video = torch.linspace(-1, 1, 64).expand(1, 3, 13, 64, 64)
    latent = vae.whiten(vae.encode(video).mean)
    again = vae.decode(vae.unwhiten(latent))
    print("video", tuple(video.shape), "latent", tuple(latent.shape), "error", float((again - video).abs().mean()))

    # No caption: one text token that does not count.
    text = torch.zeros(1, 1, dit.config.text_features)
    mask = torch.zeros(1, 1, dtype=torch.bool)
    velocity = dit(torch.randn_like(latent), torch.tensor([1.0]), text, mask)
    print("velocity", tuple(velocity.shape))
