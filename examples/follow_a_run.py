"""Follows a run, stops it halfway, and shows the clip as far as it had come."""

from contextlib import closing

import numpy as np

import daifuku

pipe = daifuku.load()
request = daifuku.GenerateRequest(prompt="a red square resting on a white background", seed=3)

with closing(pipe.run(request)) as events:
    for event in events:
        match event:
            case daifuku.TextReady(num_tokens=tokens, max_tokens=most):
                print(f"{tokens} of at most {most} tokens")
            case daifuku.Step(index=step, total=total, sigma=sigma, latent=latent):
                print(f"step {step} of {total}: noise level {sigma:.3f}")
                if 2 * step >= total:
                    break

frames = np.concatenate([chunk.frames for chunk in pipe.decode(latent)])
print("frames so far", frames.shape, frames.dtype)
