"""What can go wrong, by whose fault it is.

    ProtocolError
    ├── MisuseError            the caller broke the order of calls or passed nonsense
    │   └── StateUsedError     a state that serves once was used again
    ├── PeerError              what the other side sent is not acceptable
    │   ├── DecodeError        bytes that do not decode canonically or are out of range
    │   ├── ProofError         the proof does not hold for the announced key
    │   ├── SignatureError     a statement is not signed by whom it names
    │   └── TableError         a sealed list or batch is not what its descriptor says
    └── IdentifierError        an identifier that cannot be normalised

Messages name position and reason and never hold an identifier, a key or a label.
"""


class ProtocolError(Exception):
    """Base of everything raised in this room."""


class MisuseError(ProtocolError):
    """The caller broke the order of calls or passed nonsense."""


class StateUsedError(MisuseError):
    """A state that serves once was used again."""


class PeerError(ProtocolError):
    """What the other side sent is not acceptable."""


class DecodeError(PeerError):
    """Bytes that do not decode canonically, or a value out of range."""


class ProofError(PeerError):
    """A proof does not hold for the announced public key."""


class SignatureError(PeerError):
    """A statement is not signed by the party it names."""


class TableError(PeerError):
    """A sealed list or batch is not what its descriptor says."""


class IdentifierError(ProtocolError):
    """An identifier cannot be normalised.

    `code` is stable and meant for programs and translation; the text is for people.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
