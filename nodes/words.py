"""The words of files and people, in English and Chinese, for the codes of labels and identifiers."""

import functools
import re
import unicodedata
from enum import IntEnum
from typing import TypeVar

from protocols.identifiers import Kind
from protocols.label import Basis, Category, Reason, Status, slug

_E = TypeVar("_E", bound=IntEnum)

CATEGORY_ZH = {
    Category.TELECOM_FRAUD: "电信网络诈骗",
    Category.MULE_ACCOUNT: "涉案账户",
    Category.GAMBLING: "网络赌博",
    Category.MONEY_LAUNDERING: "洗钱",
    Category.IDENTITY_THEFT: "冒用身份",
    Category.PHISHING: "钓鱼",
    Category.SANCTIONS: "制裁名单",
    Category.SUSPICIOUS_DEVICE: "可疑设备",
    Category.OTHER: "其他",
}
BASIS_ZH = {
    Basis.POLICE_CERTIFIED: "公安认定",
    Basis.COURT: "法院裁判",
    Basis.OWN_INVESTIGATION: "自行调查",
    Basis.REPORT: "举报",
    Basis.OFFICIAL_LIST: "官方名单",
}
STATUS_ZH = {
    Status.ACTIVE: "有效",
    Status.CONTESTED: "有异议",
    Status.SUSPENDED: "暂停",
    Status.WITHDRAWN: "撤回",
    Status.EXPIRED: "到期",
}
REASON_ZH = {
    Reason.NONE: "无",
    Reason.FIRST_LEVEL_RECIPIENT: "一级账户",
    Reason.SECOND_LEVEL_RECIPIENT: "二级账户",
    Reason.SHARED_PHONE: "共用手机号",
    Reason.SHARED_DEVICE: "共用设备",
    Reason.NIGHT_BURST: "夜间集中交易",
    Reason.SANCTIONS_PROGRAMME: "制裁项目",
    Reason.VICTIM_REPORT: "受害人报案",
    Reason.REMOVED_BY_SOURCE: "来源已移除",
    Reason.APPEAL_UPHELD: "申诉成立",
    Reason.OPERATOR_DECISION: "人工决定",
    Reason.OTHER: "其他",
}
KIND_ZH = {
    Kind.CARD: "银行卡",
    Kind.ACCOUNT: "账户",
    Kind.PHONE: "手机号",
    Kind.RESIDENT_ID: "身份证",
    Kind.USCC: "统一社会信用代码",
    Kind.PASSPORT: "护照",
    Kind.FOREIGN_ID: "境外证件",
    Kind.TAX_ID: "税号",
    Kind.EMAIL: "邮箱",
    Kind.DOMAIN: "域名",
    Kind.IP: "IP地址",
    Kind.DEVICE: "设备",
    Kind.CRYPTO: "虚拟货币地址",
    Kind.NAME_BIRTH: "姓名与生日",
}
_KIND_ALIASES = {
    "mobile": Kind.PHONE,
    "telephone": Kind.PHONE,
    "手机": Kind.PHONE,
    "电话": Kind.PHONE,
    "手机号码": Kind.PHONE,
    "卡号": Kind.CARD,
    "银行卡号": Kind.CARD,
    "bank-card": Kind.CARD,
    "账号": Kind.ACCOUNT,
    "银行账号": Kind.ACCOUNT,
    "bank-account": Kind.ACCOUNT,
    "id": Kind.RESIDENT_ID,
    "id-card": Kind.RESIDENT_ID,
    "身份证号": Kind.RESIDENT_ID,
    "e-mail": Kind.EMAIL,
    "mail": Kind.EMAIL,
    "电子邮箱": Kind.EMAIL,
    "设备号": Kind.DEVICE,
    "imei": Kind.DEVICE,
    "ip": Kind.IP,
    "wallet": Kind.CRYPTO,
}


def key(text: str) -> str:
    """How words are compared: NFKC, lower case, words joined by hyphens."""
    return re.sub(r"[\s_-]+", "-", unicodedata.normalize("NFKC", text).strip().lower())


def _table(enum: type[_E], chinese: dict[_E, str]) -> dict[str, _E]:
    return {slug(each): each for each in enum} | {key(chinese[each]): each for each in enum}


CATEGORIES = _table(Category, CATEGORY_ZH)
BASES = _table(Basis, BASIS_ZH)
STATUSES = _table(Status, STATUS_ZH)
REASONS = _table(Reason, REASON_ZH)
KINDS: dict[str, Kind] = (
    {kind.value: kind for kind in Kind} | {key(KIND_ZH[kind]): kind for kind in Kind} | _KIND_ALIASES
)


@functools.lru_cache(maxsize=1_024)
def kind_of(text: str) -> Kind | None:
    """The kind a word stands for, or None."""
    return KINDS.get(key(text))
