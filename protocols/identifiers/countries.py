"""Countries as files name them, to ISO 3166-1 alpha-2: names in English and Chinese, and all ISO codes.

Names and codes are the Unicode CLDR's (through Babel); below stand the spellings that lists use besides.
"""

import functools
import re
import unicodedata

from babel import Locale
from babel.core import get_global

_NO_COUNTRIES = frozenset({"EU", "EZ", "UN", "QO", "ZZ", "XA", "XB"})
_ALSO = {
    "AE": ("uae", "阿联酋"),
    "AG": ("antigua and barbuda",),
    "BA": ("bosnia and herzegovina", "bosnia", "波黑"),
    "BS": ("bahamas",),
    "CD": ("democratic republic of congo", "congo kinshasa", "dr congo", "drc", "刚果民主共和国", "刚果(金)"),
    "CF": ("central african republic", "中非"),
    "CG": ("republic of congo", "congo", "congo brazzaville", "刚果共和国", "刚果(布)"),
    "CI": ("ivory coast", "cote d ivoire", "cote divoire", "象牙海岸"),
    "CN": ("people s republic of china", "prc", "中华人民共和国"),
    "CV": ("cabo verde",),
    "CZ": ("czech republic",),
    "DO": ("多米尼加共和国",),
    "GB": ("great britain", "britain", "england", "u k", "大不列颠"),
    "HK": ("hong kong", "hong kong sar", "香港", "中国香港"),
    "IR": ("islamic republic of iran",),
    "KN": ("saint kitts and nevis",),
    "KP": ("dprk", "democratic people s republic of korea", "北朝鲜"),
    "KR": ("republic of korea", "korea south", "南韩"),
    "LA": ("lao people s democratic republic",),
    "MK": ("republic of north macedonia", "macedonia"),
    "MM": ("burma", "myanmar"),
    "MO": ("macau", "macao", "macao sar", "macau sar", "澳门", "中国澳门"),
    "PS": ("palestinian", "palestine", "state of palestine", "巴勒斯坦"),
    "RU": ("russian federation", "俄罗斯联邦"),
    "ST": ("sao tome and principe",),
    "SY": ("syrian arab republic",),
    "SZ": ("swaziland",),
    "TR": ("turkey",),
    "TT": ("trinidad and tobago",),
    "TW": ("中国台湾", "taiwan province of china"),
    "TZ": ("united republic of tanzania",),
    "US": ("united states of america", "u s", "u s a", "america", "美利坚合众国"),
    "VA": ("holy see",),
    "VC": ("saint vincent and the grenadines",),
    "VE": ("bolivarian republic of venezuela",),
    "VG": ("virgin islands british", "british virgin islands"),
    "VI": ("virgin islands us",),
    "VN": ("viet nam",),
}


def _key(name: str) -> str:
    """A name without accents, articles and punctuation; what stands after a comma comes first ("Gambia, The")."""
    first, comma, rest = name.strip().partition(",")
    if comma:
        name = f"{rest} {first}"
    plain = unicodedata.normalize("NFKD", name.casefold())
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    words = re.sub(r"[^\w()]+", " ", plain.replace("&", " and ")).split()
    return " ".join(word for word in words if word != "the")


def _territories(language: str) -> dict[str, str]:
    return {str(code): str(name) for code, name in Locale(language).territories.items()}


@functools.cache
def names() -> dict[str, str]:
    """All known spellings, as `_key` writes them, to alpha-2 codes."""
    found: dict[str, str] = {}
    english, chinese = _territories("en"), _territories("zh")
    codes = {code for code in english if len(code) == 2 and code.isalpha() and code not in _NO_COUNTRIES}
    for alias, targets in get_global("territory_aliases").items():
        if len(targets) == 1 and targets[0] in codes and alias not in codes:
            found[alias.casefold()] = targets[0]
    for code in codes:
        # "Myanmar (Burma)" is known by both names.
        for name in (chinese[code], *re.split(r"\s*\(([^)]+)\)$", english[code])):
            if name:
                found[_key(unicodedata.normalize("NFKC", name))] = code
    for code, others in _ALSO.items():
        found |= {_key(other): code for other in others}
    return found | {code.casefold(): code for code in codes}


@functools.lru_cache(maxsize=1_024)
def country_code(text: str) -> str | None:
    """The alpha-2 code of a country's name or code, or None."""
    return names().get(_key(unicodedata.normalize("NFKC", text)))
