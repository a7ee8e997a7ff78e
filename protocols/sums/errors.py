"""What ends or pauses a secure sum."""

from ..errors import PeerError


class SumAborted(PeerError):
    """A job has ended: says in which phase, at whose fault where that is known, and why.

    No sum is given out after this, and the job's keys are gone.
    """

    def __init__(self, phase: str, party: str, reason: str) -> None:
        super().__init__(f"{phase}: {party}: {reason}" if party else f"{phase}: {reason}")
        self.phase, self.party, self.reason = phase, party, reason
