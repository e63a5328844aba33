"""What `status` and `explain` say to people."""

from typing import Any

_DAY_S, _HOUR_S, _MINUTE_S = 86400, 3600, 60


def status_text(found: dict[str, Any]) -> str:
    name = "/".join(part for part in (found["device"], found["module"]) if part)
    lines = [f"{name or 'no identity yet'}: {'running' if found['isRunning'] else 'stopped'}, boot {found['boot']}"]
    for model, entry in found["models"].items():
        serves = f"version {entry['version']} ({entry['format']})" if entry["version"] else "nothing"
        lines.append(f"{model}: serves {serves}; generation {entry['generation']} is {entry['phase']}")
        if entry["error"]:
            lines.append(f"  {entry['error']['code']}: {entry['error']['message']}")
    counts = found["telemetry"]
    lines.append(
        f"telemetry: {counts['enqueued']} taken, {counts['acknowledged']} delivered, "
        f"{counts['waiting']} waiting, {counts['dropped']} dropped"
    )
    return "\n".join(lines + _health_lines(found.get("health")))


def _health_lines(health: dict[str, Any] | None) -> list[str]:
    if not health:
        return []
    facts = [f"up {duration(health.get('processUptimeS', 0))}"]
    if "temperatureC" in health:
        facts.append(f"{health['temperatureC']:g} °C")
    if "memoryBytes" in health:
        facts.append(f"{mebibytes(health['memoryBytes'])} used")
    if "memoryAvailableBytes" in health:
        facts.append(f"{mebibytes(health['memoryAvailableBytes'])} available")
    if "diskFreeBytes" in health:
        facts.append(f"{mebibytes(health['diskFreeBytes'])} free on disk")
    if "loadAverage" in health:
        facts.append(f"load {health['loadAverage']:g}")
    lines = [f"health: {', '.join(facts)}"]
    if "sensor" in health:
        lines.append(f"  {_sensor_words(health['sensor'])}")
    if "mirror" in health:
        lines.append(f"  {_mirror_words(health['mirror'])}")
    for model, entry in health.get("models", {}).items():
        p50, p99 = entry.get("latencyP50Ms"), entry.get("latencyP99Ms")
        latency = f", half within {p50:g} ms" if p50 else ""
        latency += f", 99 % within {p99:g} ms" if p99 else ""
        labels = "; ".join(f"{label['label']} {label['count']}" for label in entry.get("predictions", [])[:5])
        lines.append(
            f"  {model}: {entry.get('inferences', 0)} inferences, {entry.get('errors', 0)} errors{latency}"
            + (f"; answers: {labels}" if labels else "")
        )
    if health.get("errors"):
        lines.append("  errors: " + ", ".join(f"{kind} {count}" for kind, count in sorted(health["errors"].items())))
    return lines


def _mirror_words(mirror: dict[str, Any]) -> str:
    state = "connected" if mirror.get("isConnected") else "not connected"
    return f"mirror: {state}; {mirror.get('published', 0)} published, {mirror.get('dropped', 0)} dropped"


def _sensor_words(sensor: dict[str, Any]) -> str:
    counts = (("ignored", "wanted by no model"), ("failed", "failed"), ("dropped", "without a place"))
    parts = [f"{sensor.get('taken', 0)} readings taken"]
    parts += [f"{sensor[key]} {words}" for key, words in counts if sensor.get(key)]
    if sensor.get("hasEnded"):
        parts.append("it has ended")
    if sensor.get("problem"):
        parts.append(f"now: {sensor['problem']}")
    return f"sensor {sensor['kind']}: {', '.join(parts)}"


def explain_text(found: dict[str, Any], only: str | None = None) -> str:
    """Every model that is not where it should be with its reason and what to do, then the others."""
    lines = ["The agent runs." if found["isRunning"] else "The agent is stopped; this is what its state says."]
    if found["hub"] is not None:
        lines.append(_hub_line(found["hub"]))
    if not found["models"]:
        lines.append("No model was ever asked for. Start a rollout, or see what the module twin desires.")
    for name, entry in found["models"].items():
        if only in (None, name):
            lines += ["", *_model_lines(name, entry)]
    if only is None:
        lines += ["", *_disk_lines(found["disk"])]
    return "\n".join(lines)


def _hub_line(hub: dict[str, Any]) -> str:
    if hub["isConnected"]:
        return f"The hub {hub['hostName']} is connected."
    why = f": {hub['problem'].rstrip('.')}" if hub["problem"] else ""
    when = f"; next try in {hub['retryInSeconds']:.0f} s" if hub["retryInSeconds"] is not None else ""
    return f"The hub {hub['hostName']} is not connected{why}{when}. Readings are kept."


def _model_lines(name: str, entry: dict[str, Any]) -> list[str]:
    offered = entry.get("offeredVersion")
    what = f"version {offered} (generation {entry['generation']})" if offered else "no offer"
    lines = [f"{name}: {what}, {entry['phase']}" if entry["phase"] else f"{name}: {what}"]
    serving = entry.get("servingVersion")
    lines.append(f"  serves     {f'version {serving}' if serving else 'nothing'}")
    lines.append(f"  meaning    {entry['meaning']}")
    if entry.get("code"):
        lines.append(f"  why        {entry['code']}: {entry['message']}")
        lines.append(f"  next       {entry['nextAction']}")
    lines += [f"  waits for  {wait}" for wait in entry["waitsFor"]]
    for number, line in enumerate(entry["history"]):
        label = "history" if number == 0 else ""
        before, after = line.get("before") or "nothing", line.get("after") or "nothing"
        why = f": {line['code']}" if line.get("code") else ""
        what = f"generation {line.get('generation', 0)} of {line.get('rollout') or 'no rollout'}"
        lines.append(f"  {label:10} {line['at']}  {what}: {before} → {after} ({line['event']}{why})")
    return lines


def _disk_lines(disk: dict[str, Any]) -> list[str]:
    lines = [
        f"On disk: artifacts {disk['artifactBytes']:,} bytes, unfinished {disk['partBytes']:,}, "
        f"journal and outbox {disk['databaseBytes']:,}"
        + (f"; {mebibytes(disk['freeBytes'])} free" if disk["freeBytes"] is not None else "")
    ]
    lines += [
        f"  {kept['model']}:{kept['version']} ({kept['format']}) {kept['role']}, {kept['bytes']:,} bytes, "
        f"{kept['digest'][:15]}"
        for kept in disk["releases"]
    ]
    return lines


def duration(seconds: int) -> str:
    """The two largest units."""
    if seconds >= _DAY_S:
        return f"{seconds // _DAY_S} d {seconds % _DAY_S // _HOUR_S} h"
    if seconds >= _HOUR_S:
        return f"{seconds // _HOUR_S} h {seconds % _HOUR_S // _MINUTE_S} min"
    if seconds >= _MINUTE_S:
        return f"{seconds // _MINUTE_S} min {seconds % _MINUTE_S} s"
    return f"{seconds} s"


def mebibytes(size_bytes: int) -> str:
    return f"{size_bytes / (1024 * 1024):,.0f} MiB"
