"""The autoencoder as its users hold it: encoder, decoder and the statistics of its latents."""

from collections.abc import Iterable, Iterator

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from daifuku.config import LatentStats
from daifuku.model.vae.decoder import Decoder
from daifuku.model.vae.encoder import Encoder, Posterior


class AsymmVAE(nn.Module):
    """Either half may be absent: a decoder alone can show latents, an encoder alone can make them."""

    def __init__(self, encoder: Encoder | None, decoder: Decoder | None, stats: LatentStats) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.stats = stats

    def encode(self, video: Float[Tensor, "b 3 frames height width"]) -> Posterior:
        """Video in [-1, 1], 6k+1 frames, sides multiples of 8. Raises ValueError when there is no encoder."""
        return self._encoder()(video)

    def encode_chunks(self, pieces: Iterable[Float[Tensor, "b 3 _frames height width"]]) -> Iterator[Posterior]:
        """`encode` for a clip that arrives in pieces of any length: latent frame by latent frame, the same together."""
        return self._encoder().chunks(pieces)

    def _encoder(self) -> Encoder:
        if self.encoder is None:
            raise ValueError("this VAE has no encoder: load the file that holds it (encoder.safetensors) as well")
        return self.encoder

    def decode(self, latent: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b 3 frames height width"]:
        """Un-whitened latents to video around [-1, 1], not clamped. Raises ValueError when there is no decoder."""
        if self.decoder is None:
            raise ValueError("this VAE has no decoder: load the file that holds it (decoder.safetensors) as well")
        return self.decoder(latent)

    def whiten(self, latent: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
        """From the scale of the VAE to zero mean and unit variance per channel, the scale of the DiT."""
        mean, std = self._stats_like(latent)
        return (latent - mean) / std

    def unwhiten(self, latent: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
        """The inverse of `whiten`."""
        mean, std = self._stats_like(latent)
        return latent * std + mean

    def _stats_like(self, latent: Tensor) -> Tensor:
        stats = torch.tensor([self.stats.mean, self.stats.std], dtype=latent.dtype, device=latent.device)
        return rearrange(stats, "two c -> two c 1 1 1")
