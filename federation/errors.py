"""What can go wrong while learning.

LearningError
├── DataError       a bank's rows cannot be used: names file, row and column
├── JobError        a job descriptor does not hold together, or does not fit the data
└── TrainingEnded   a run ended early: names phase, bank and cause
"""


class LearningError(Exception):
    """Base of everything raised in this room. `public` is what other institutions may be told."""

    @property
    def public(self) -> str:
        """Without anything from a bank's rows or files."""
        return str(self)


class DataError(LearningError):
    """Rows that cannot be used. The message names the file, and row and column where there is one."""

    def __init__(self, message: str, public: str = "its rows cannot be used") -> None:
        super().__init__(message)
        self._public = public

    @property
    def public(self) -> str:
        """At most the name of a column, which the job names anyway."""
        return self._public


class JobError(DataError):
    """A job that does not hold together or that the data does not fit. No sum reaches the coordinator by it."""

    def __init__(self, message: str, public: str = "the job does not fit the data") -> None:
        super().__init__(message, public)


class TrainingEnded(LearningError):
    """A run ended before it was done."""
