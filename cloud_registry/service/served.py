"""What a server does for people elsewhere where it does less for them than for whoever sits at its machine."""

from dataclasses import dataclass

from cloud_registry.errors import UsageError
from cloud_registry.ports import ProgressListener, ProofTerms
from cloud_registry.service.local import LocalModels
from cloud_registry.service.registration import Registered, Registration

# A registration keeps one of a few threads for so long at most, for each file.
PROOF_DURATION_S_MAX = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModels(LocalModels):
    """Satisfies ModelVerbs for strangers: their models run confined, and within bounds that they cannot lift."""

    proof_memory_bytes_max: int

    def register(self, registration: Registration, on_progress: ProgressListener | None = None) -> Registered:
        self._check_terms(registration.terms)
        # By name, since a class with slots is made anew by its decorator and `super()` looks for the first one.
        return LocalModels.register(self, registration, on_progress)

    def _check_terms(self, terms: ProofTerms) -> None:
        if terms.is_unconfined:
            raise UsageError(
                "a server runs no model with the network in reach",
                hint="Leave --unconfined out, or register it at the server's machine.",
            )
        if terms.duration_max_s > PROOF_DURATION_S_MAX:
            raise UsageError(
                f"a server gives a model at most {PROOF_DURATION_S_MAX:g} s, and {terms.duration_max_s:g} s were asked",
                hint="Give fewer samples, or register it at the server's machine.",
            )
        if (terms.memory_max_bytes or 0) > self.proof_memory_bytes_max:
            raise UsageError(
                f"this server gives a model at most {self.proof_memory_bytes_max:,} bytes of memory, and "
                f"{terms.memory_max_bytes:,} were asked",
                hint="Register it on a larger machine.",
            )
