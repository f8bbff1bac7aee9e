"""What /metrics shows, in Prometheus' format. Nothing in it is of a request's content."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sensorium.serve.hosted import Hosted

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Loops(Collector):
    """What the loops count themselves, read when it is asked for."""

    def __init__(self, models: Sequence[Hosted]) -> None:
        self.models = models

    def collect(self) -> Iterator[Metric]:
        waiting = GaugeMetricFamily("sensorium_requests_waiting", "Requests without a first token", labels=["model"])
        active = GaugeMetricFamily("sensorium_requests_active", "Answers being generated", labels=["model"])
        tokens = CounterMetricFamily(
            "sensorium_tokens", "Tokens read and said; cached: of prompts, read for an earlier request",
            labels=["model", "kind"],
        )  # fmt: skip
        lost = CounterMetricFamily("sensorium_generations_failed", "Requests that the loop failed on", labels=["model"])
        for one in self.models:
            loop = one.loop
            if loop is None:
                waiting.add_metric([one.name], one.ahead)
                continue
            answering = loop.active  # read against the way that requests go: one that moves meanwhile counts once
            queued = loop.waiting
            active.add_metric([one.name], answering)
            waiting.add_metric([one.name], one.ahead + queued)
            stats = loop.stats
            tokens.add_metric([one.name, "prompt"], stats.prompt_tokens)
            tokens.add_metric([one.name, "cached"], stats.cached_tokens)
            tokens.add_metric([one.name, "completion"], stats.completion_tokens)
            lost.add_metric([one.name], stats.failed)
        yield from (waiting, active, tokens, lost)


class Metrics:
    """The numbers of one server, in a registry of its own."""

    def __init__(self, models: Sequence[Hosted]) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(Loops(models))
        self.open = Gauge(
            "sensorium_requests_open",
            "Requests for work that were taken and are not answered yet",
            registry=self.registry,
        )
        self.requests = self._counter("requests", "Requests by route, model and status", "route", "model", "status")
        self.errors = self._counter("errors", "Requests that were refused or failed, by code", "code")
        self.duration = self._seconds("request_seconds", "From the request's head to the end of its answer", "route")
        self.first = self._seconds("time_to_first_token_seconds", "From the request's head to its first token")
        self.queue = self._seconds("queue_seconds", "From the prompt's admission to its first token")
        self.between = Histogram(
            "sensorium_time_between_tokens_seconds", "Between two pieces of one answer", ["model"],
            buckets=BETWEEN, registry=self.registry,
        )  # fmt: skip

    def _counter(self, name: str, about: str, *labels: str) -> Counter:
        return Counter(f"sensorium_{name}", about, labels, registry=self.registry)

    def _seconds(self, name: str, about: str, label: str = "model") -> Histogram:
        return Histogram(f"sensorium_{name}", about, [label], buckets=SECONDS, registry=self.registry)

    def text(self) -> bytes:
        return generate_latest(self.registry)
