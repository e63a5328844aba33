"""Device provisioning (DPS): enrollments, the proofs they ask for, and registrations that lead to this hub. Pure."""

from simulators.iothub.core.provisioning.attestation import Proof, derived_key
from simulators.iothub.core.provisioning.service import RETRY_AFTER_S, Provisioning

__all__ = ["RETRY_AFTER_S", "Proof", "Provisioning", "derived_key"]
