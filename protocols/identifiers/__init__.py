"""Identifiers: the one normalisation that both sides of a lookup must agree on.

`normalise` gives an `Identifier`, whose `canonical` bytes are `kind ‖ 0x1f ‖ value` in NFKC UTF-8, or raises
`IdentifierError` with a stable code; `canonical_each` does a column. Nothing is guessed: what is masked, shared by many people, or not
certainly what its kind says is refused. `recognise` lists the kinds a bare value may be. `form` names version and data.
"""

from .forms import VERSION, form, form_text
from .institutions import Directory
from .kinds import KINDS, Identifier, Kind, canonical_each, normalise
from .recognise import recognise

__all__ = [
    "KINDS",
    "VERSION",
    "Directory",
    "Identifier",
    "Kind",
    "canonical_each",
    "form",
    "form_text",
    "normalise",
    "recognise",
]
