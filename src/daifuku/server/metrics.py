"""Figures for Prometheus. Labels are states and routes, never anything that users write."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class Metrics:
    """Of one server; two in one process do not share them."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.accepted = Counter("daifuku_jobs_accepted", "Jobs that are on disk.", registry=registry)
        self.refused = Counter("daifuku_jobs_refused", "Requests that stored nothing.", ["code"], registry=registry)
        self.ended = Counter("daifuku_jobs_ended", "Jobs by the state they ended in.", ["state"], registry=registry)
        self.worker_deaths = Counter("daifuku_worker_deaths", "Workers that died under a job.", registry=registry)
        self.webhooks = Counter("daifuku_webhooks", "Webhooks by outcome.", ["event", "outcome"], registry=registry)
        self.queued = Gauge("daifuku_jobs_queued", "Jobs that wait.", registry=registry)
        self.ready = Gauge("daifuku_workers_ready", "Workers that have a model.", registry=registry)
        self.requests = Counter(
            "daifuku_http_requests", "Answers by route and status.", ["method", "route", "status"], registry=registry
        )
        buckets = (1, 3, 10, 30, 100, 300, 1000, 3000, 10000)
        self.job_seconds = Histogram("daifuku_job_seconds", "From claim to end.", buckets=buckets, registry=registry)
        self.request_seconds = Histogram("daifuku_http_seconds", "Until an answer began.", ["route"], registry=registry)

    def page(self) -> bytes:
        """As Prometheus reads it."""
        return generate_latest(self._registry)
