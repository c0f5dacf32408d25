"""Where the stages of a preparation run: on this machine, or on a Ray cluster. The work is the same functions."""

import logging
import os
import pickle
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

from daifuku.errors import DaifukuError, InvalidRequest

T = TypeVar("T")
R = TypeVar("R")

LOCAL_RAY = "local"
"""The address of a Ray cluster that is started here and ends with the run."""

OBJECT_STORE_BYTES = 80 * 2**20
"""Of that cluster. What passes through it are plans and reports; frames and latents never do."""


@runtime_checkable
class Executor(Protocol):
    """Gives results as they come, in any order."""

    def each(self, work: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
        """`work` on every item, many at a time."""
        ...

    def by_workers(self, make: Callable[[], Callable[[T], R]], items: Sequence[T]) -> Iterator[R]:
        """The same by workers that `make` makes once for each device, and that hold a network."""
        ...


class ThisMachine:
    """Threads that each look after a process, and one worker."""

    def each(self, work: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
        waiting, results = deque(items), SimpleQueue[tuple[R | None, Exception | None]]()
        for _ in range(min(num_cores(), len(items))):
            # Not a pool of concurrent.futures, which would keep a run that is told to stop until its last file is read.
            Thread(target=_drain, args=(waiting, work, results), daemon=True).start()
        try:
            for _ in items:
                result, error = results.get()
                if error is not None:
                    raise error
                yield cast(R, result)
        finally:
            waiting.clear()

    def by_workers(self, make: Callable[[], Callable[[T], R]], items: Sequence[T]) -> Iterator[R]:
        if items:
            yield from map(make(), items)


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _drain(waiting: deque[Any], work: Callable[[Any], Any], results: SimpleQueue[Any]) -> None:
    while True:
        try:
            item = waiting.popleft()
        except IndexError:
            return
        try:
            results.put((work(item), None))
        except Exception as error:  # noqa: BLE001 (it is raised where the results are read)
            results.put((None, error))


class OnRay:
    """A Ray cluster, through Ray Data. Its nodes see the folders under the same names, and have this package.

    Raises InvalidRequest where Ray is not installed, and where no cluster answers at `address`.
    """

    def __init__(self, address: str, *, uses_gpu: bool) -> None:
        try:
            import ray
        except ImportError:
            raise InvalidRequest("Ray is not installed. Try: pip install 'daifuku[ray]'.") from None
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "ignore_reinit_error": True}
        if address == LOCAL_RAY:
            options |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
        try:
            ray.init(address=address, **options)
        except (ConnectionError, ValueError, RuntimeError) as error:
            what = str(error).splitlines()[0]
            raise InvalidRequest(f"no Ray cluster answers at {address!r} ({what}). Try {LOCAL_RAY!r}.") from error
        self._uses_gpu = uses_gpu

    def each(self, work: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
        return self._run(partial(_guarded, work), items, {})

    def by_workers(self, make: Callable[[], Callable[[T], R]], items: Sequence[T]) -> Iterator[R]:
        import ray
        from ray.data import ActorPoolStrategy

        places = int(ray.cluster_resources().get("GPU", 0)) if self._uses_gpu else len(ray.nodes())
        pool = ActorPoolStrategy(min_size=1, max_size=max(min(places, len(items)), 1))
        return self._run(_Worker, [(make, item) for item in items], {"compute": pool, "num_gpus": int(self._uses_gpu)})

    def _run(self, work: Any, items: Sequence[T], options: dict[str, Any]) -> Iterator[Any]:
        if not items:
            return
        from ray.data import DataContext, from_items

        # What Ray tells about itself would come between our own lines. Importing it has set this anew.
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        packed = from_items([{"item": pickle.dumps(item)} for item in items], override_num_blocks=len(items))
        for row in packed.map(work, **options).iter_rows():
            good, result = pickle.loads(row["result"])
            if not good:
                raise result
            yield result


class _Worker:
    """A worker in a process of the cluster, made when its first item comes."""

    def __init__(self) -> None:
        self._made: Callable[[Any], Any] | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return _guarded(self._work, row)

    def _work(self, given: tuple[Callable[[], Callable[[Any], Any]], Any]) -> Any:
        make, item = given
        self._made = self._made or make()
        return self._made(item)


def _guarded(work: Callable[[Any], Any], row: dict[str, Any]) -> dict[str, Any]:
    """Work on a packed item. The project's own errors travel as results: Ray would wrap them in its own."""
    try:
        result = (True, work(pickle.loads(row["item"])))
    except DaifukuError as error:
        result = (False, error)
    return {"result": pickle.dumps(result)}
