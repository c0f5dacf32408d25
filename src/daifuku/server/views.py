"""Jobs as clients see them."""

from typing import Any

from daifuku.server.feed import Progress
from daifuku.server.folder import Retention
from daifuku.server.jobs import Job

STATUS = {"running": "in_progress"}
"""What OpenAI's clients call a state, where that is another word."""

SHOWN_FIELDS = (
    *("width", "height", "num_frames", "fps", "num_inference_steps", "guidance_scale", "negative_prompt", "seed"),
    *("loras", "solver", "preset"),
)


def video(job: Job, progress: Progress, position: int | None, retention: Retention) -> dict[str, Any]:
    """The object `video` of OpenAI's API, and beside it what else a request had, how far it is and its hashes."""
    request = job.request
    expires_at = retention.expires_at(job)
    done = job.state == "completed"
    return {
        "id": job.id,
        "object": "video",
        "model": job.model,
        "status": STATUS.get(job.state, job.state),
        "progress": 100 if done else progress.percent,
        "created_at": int(job.created_at),
        "completed_at": int(job.ended_at) if done and job.ended_at is not None else None,
        "expires_at": None if expires_at is None else int(expires_at),
        "size": f"{request['width']}x{request['height']}",
        "seconds": f"{request['num_frames'] / request['fps']:g}",
        "prompt": request["prompt"],
        "remixed_from_video_id": job.parent,
        "error": None if job.error_code is None else {"code": job.error_code, "message": job.error_message},
        **{name: request[name] for name in SHOWN_FIELDS},
        "kind": job.kind,
        "queue_position": position,
        "stage": progress.stage if job.state == "running" else None,
        "attempts": job.fence,
        "files": None if job.result is None or job.files_gone_at is not None else job.result["files"],
        "frames_sha256": None if job.result is None else job.result["frames_sha256"],
        "timings": None if job.result is None else job.result["timings"],
    }
