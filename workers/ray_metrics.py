"""Metrics through Ray, whose nodes export them for Prometheus beside their own.

Values go to the agent of the driver's node every few seconds (``metrics_report_interval_ms`` of
Ray, 10 s), and are exported there with the prefix ``ray_``. Counters start at 0 with each driver,
as Prometheus expects.
"""

from collections.abc import Iterable, Mapping

import ray
from ray.util import metrics

from workers.meters import Meter

_Instrument = metrics.Counter | metrics.Gauge | metrics.Histogram


class RayMeters:
    """Keeps metrics in the Ray that this process has joined.

    Ray adds the middle of a bucket, not the value, to the sum of a histogram: where a sum matters,
    count it.

    Args:
        meters: What will be recorded.
        search: Value of the label ``search``.
    """

    def __init__(self, meters: Iterable[Meter], search: str) -> None:
        self._instruments = {meter.name: _instrument_of(meter, search) for meter in meters}

    def record(self, name: str, value: float, tags: Mapping[str, str] | None = None) -> None:
        """Add to a counter, set a gauge, or put a value into a histogram."""
        instrument, labels = self._instruments[name], dict(tags or {})
        if isinstance(instrument, metrics.Gauge):
            instrument.set(value, labels)
        elif isinstance(instrument, metrics.Histogram):
            instrument.observe(value, labels)
        elif value > 0:  # Ray refuses to add nothing
            instrument.inc(value, labels)


def metrics_url() -> str | None:
    """Return where the metrics of this process's node are read; None where Ray exports none."""
    here = ray.get_runtime_context().get_node_id()
    for node in ray.nodes():
        if node["NodeID"] == here and node.get("MetricsExportPort", 0) > 0:
            return f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    return None


def _instrument_of(meter: Meter, search: str) -> _Instrument:
    tags = ("search", *meter.tags)
    instrument: _Instrument
    if meter.kind == "histogram":
        bounds = list(meter.boundaries)
        instrument = metrics.Histogram(meter.name, meter.help, boundaries=bounds, tag_keys=tags)
    elif meter.kind == "gauge":
        instrument = metrics.Gauge(meter.name, meter.help, tag_keys=tags)
    else:
        instrument = metrics.Counter(meter.name, meter.help, tag_keys=tags)
    instrument.set_default_tags({"search": search})
    return instrument
