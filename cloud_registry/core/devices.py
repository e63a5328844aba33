"""A device as other programs read it: the stable fields of `slipway device list --json`. Pure."""

from typing import Any

from cloud_registry.ports import ModuleTwin


def device_as_json(twin: ModuleTwin) -> dict[str, Any]:
    """What a module twin says of its device: the models that it runs, its agent, its telemetry."""
    section = twin.reported_section()
    models = {
        name: {
            "version": reported.loaded_version,
            "digest": reported.loaded_digest,
            "format": reported.loaded_format,
            "phase": reported.phase.value,
            "generation": reported.generation,
            "rollout": reported.rollout,
            "offeredVersion": reported.version,
            "error": reported.error.to_wire() if reported.error else None,
        }
        for name, reported in sorted(section.models.items())
    }
    return {
        "device": twin.device_id,
        "module": twin.module_id,
        "connected": twin.is_connected,
        "models": models,
        "agent": section.agent.to_wire() if section.agent else None,
        "telemetry": section.telemetry.to_wire() if section.telemetry else None,
    }
