"""Which readings matter most when there is no room for all. Pure."""

from dataclasses import dataclass

from manifests.telemetry import Envelope


@dataclass(frozen=True, slots=True)
class AlertRule:
    """What makes a reading an alert, besides being an error or an event of the agent.

    Args:
        predictions: classes that count, as ``label`` or ``model:label``.
        confidence_min: how sure the model has to be of such a class.
        above: any number of an answer without classes that is larger than this counts; None for none.
    """

    predictions: frozenset[str] = frozenset()
    confidence_min: float = 0.0
    above: float | None = None

    def matches(self, envelope: Envelope) -> bool:
        if envelope.kind != "inference":
            return True
        label = envelope.prediction
        if label is not None and self.predictions & {label, f"{envelope.model}:{label}"}:
            return envelope.confidence is None or envelope.confidence >= self.confidence_min
        return self.above is not None and any(number > self.above for number in _numbers(envelope))


def _numbers(envelope: Envelope) -> list[float]:
    lists = (value if isinstance(value, list) else [value] for value in envelope.values.values())
    return [number for one in lists for number in one if isinstance(number, int | float)]
