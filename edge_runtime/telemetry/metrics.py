"""The live figures in Prometheus' form. Observes last events and snapshots; measures nothing itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ..engine.request import Done, Failed

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_GAPS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)

_NOW = {
    "slots": "Slots",
    "slots_busy": "Slots that read or answer",
    "queue_waiting": "Requests without a slot",
    "threads": "Threads in use",
    "prefix_tokens": "Tokens kept for shared beginnings",
    "memory_bytes": "PSS of the engine and the web process",
    "restarts": "Times the engine's process was started again",
    "temperature_celsius": "Of the hottest place on the chip",
    "throttled": "Whether heat or a limit of power slowed the processors a moment ago",
    "power_watts": "What a Jetson's module takes, or what the battery gives",
    "energy_joules_total": "Since the start: of the processors (RAPL), the module (INA) or the battery",
}


class Metrics(Collector):
    """One registry; `text` is the answer of /metrics."""

    def __init__(self) -> None:
        self._registry = r = CollectorRegistry()
        self._ttft = Histogram("medge_ttft_seconds", "Time to first token", buckets=_SECONDS, registry=r)
        self._itl = Histogram(
            "medge_itl_seconds", "Time between two tokens of an answer", buckets=_GAPS, registry=r
        )
        self._queued = Histogram(
            "medge_queued_seconds", "Time until a request had a slot", buckets=_SECONDS, registry=r
        )
        self._tokens = Counter("medge_tokens", "Tokens of finished requests", ["kind"], registry=r)
        self._requests = Counter("medge_requests", "Requests by how they ended", ["end"], registry=r)
        self._now: Mapping[str, float | None] = {}
        r.register(self)
        for kind in ("prompt", "cached", "generated"):
            self._tokens.labels(kind)

    def observe(self, event: Done | Failed) -> None:
        """Count a finished request."""
        if isinstance(event, Failed):
            self._requests.labels(event.error.code).inc()
            return
        t = event.timing
        self._requests.labels(event.finish_reason).inc()
        self._queued.observe(t.queued_s)
        if t.ttft_s is not None:
            self._ttft.observe(t.ttft_s)
        for before, after in zip(t.token_times_s, t.token_times_s[1:]):
            self._itl.observe(after - before)
        self._tokens.labels("prompt").inc(t.n_prompt)
        self._tokens.labels("cached").inc(t.n_cached)
        self._tokens.labels("generated").inc(t.n_generated)

    def text(self, now: Mapping[str, float | None]) -> bytes:
        """Everything, and what is so now. None is left out: nobody tells it."""
        self._now = now
        return bytes(generate_latest(self._registry))

    def collect(self) -> Iterator[Metric]:
        for name, value in self._now.items():
            if value is not None:
                family = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
                yield family(f"medge_{name}", _NOW[name], value=value)
