"""Videos as the API shows them."""

from typing import Any

from daifuku.request_schema import SET

FIELDS: dict[str, Any] = {
    "negative_prompt": {"default": ""},
    "width": {"default": 64},
    "height": {"default": 64},
    "num_frames": {"default": 31},
    "fps": {"default": 20},
    "preset": {
        "default": "exact",
        "enum": ["exact", "draft", "fast8"],
        SET: {
            "exact": {"num_inference_steps": 32, "guidance_scale": 3.0},
            "draft": {"num_inference_steps": 8, "guidance_scale": 3.0},
            "fast8": {"num_inference_steps": 8, "guidance_scale": 1.5},
        },
    },
    "num_inference_steps": {"default": 32},
    "guidance_scale": {"default": 3.0},
}
"""Schema of a request to a small model."""


def video(number: int = 1, status: str = "completed", **more: Any) -> dict[str, Any]:
    """The object `video` of the API."""
    done = status == "completed"
    about: dict[str, Any] = {
        "id": f"video_{number:032x}",
        "object": "video",
        "model": "tiny",
        "status": status,
        "progress": 100 if done else 0,
        "created_at": 1_700_000_000 + number,
        "size": "64x64",
        "seconds": "1.55",
        "prompt": "a red ball",
        "remixed_from_video_id": None,
        "error": None,
        "width": 64,
        "height": 64,
        "num_frames": 31,
        "fps": 20,
        "num_inference_steps": 32,
        "guidance_scale": 3.0,
        "negative_prompt": "",
        "seed": 7,
        "loras": [],
        "solver": "euler",
        "preset": "exact",
        "queue_position": None,
        "stage": None,
        "attempts": 1,
        "files": {"video": {"bytes": 20, "sha256": "0"}} if done else None,
        "frames_sha256": "f00d" if done else None,
        "timings": {"text_s": 0.5, "sampling_s": 2.0} if done else None,
    }
    return about | more
