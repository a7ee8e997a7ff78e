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
# What clerks write besides, each word once. In lower case, words joined by hyphens.
_KIND_ALIASES = {
    Kind.CARD: "bank-card payment-card debit-card credit-card card-number card-no 卡号 银行卡号 银行卡号码 借记卡 借记卡号 信用卡 信用卡号 支付卡",
    Kind.ACCOUNT: (
        "bank-account account-number account-no iban 账号 帐号 账户号 账户号码 帐户 银行账号 银行账户 对公账户 对公账号 个人账户 结算账户 "
        "收款账号 收款账户 支付账户 支付账号"
    ),
    Kind.PHONE: (
        "mobile telephone tel cell mobile-number phone-number msisdn 手机 手机号码 电话 电话号码 联系电话 联系方式 移动电话 固定电话 固话 "
        "座机 涉案号码 涉诈号码 涉诈电话 主叫号码 物联网卡 物联网号码"
    ),
    Kind.RESIDENT_ID: (
        "id id-card id-number identity-card national-id-cn resident-identity-card 身份证号 身份证号码 居民身份证 居民身份证号码 公民身份号码 "
        "身份证件号码 "
        "二代身份证"
    ),
    Kind.USCC: "unified-social-credit-code social-credit-code business-licence 社会信用代码 信用代码 企业信用代码 营业执照 营业执照号 企业代码",
    Kind.PASSPORT: "passport-number passport-no 护照号 护照号码",
    Kind.FOREIGN_ID: (
        "foreign-identity-card national-id 外国证件 外籍证件 境外身份证 港澳台证件 港澳居民来往内地通行证 回乡证 台胞证 香港身份证 澳门身份证 "
        "外国人永久居留证"
    ),
    Kind.TAX_ID: "tax-number tin vat-number 税务登记号 纳税人识别号 税务号码",
    Kind.EMAIL: "e-mail mail email-address 电子邮箱 电子邮件 邮件 邮箱地址 电子邮件地址",
    Kind.DOMAIN: "domain-name website site url 网址 网站 网站域名 涉诈域名 涉诈网址",
    Kind.IP: "ip-address ip地址 登录ip 登陆ip ip号",
    Kind.DEVICE: "device-id imei mac uuid 设备号 设备id 设备标识 设备编号 设备指纹 手机串号 串号 mac地址 机器码",
    Kind.CRYPTO: "wallet wallet-address crypto-address 钱包 钱包地址 虚拟币地址 数字货币地址 虚拟货币钱包 币址 usdt地址",
    Kind.NAME_BIRTH: "name-and-birth-date 姓名生日 姓名及出生日期 姓名和出生日期",
}
_CATEGORY_ALIASES = {
    Category.TELECOM_FRAUD: (
        "fraud telecom telecommunication-fraud scam 电信诈骗 电诈 诈骗 网络诈骗 电信网络诈骗犯罪 涉诈 杀猪盘 刷单 刷单返利 冒充公检法 冒充客服 "
        "虚假投资 虚假投资理财 虚假贷款 网络贷款诈骗 贷款诈骗 虚假购物"
    ),
    Category.MULE_ACCOUNT: (
        "mule money-mule mule-card 跑分 跑分账户 涉案卡 涉案银行卡 涉案 骡子账户 人头账户 买卖账户 出租出借账户 租借账户 断卡 两卡 一级卡 二级卡 "
        "帮信 洗钱账户 过渡账户"
    ),
    Category.GAMBLING: "online-gambling gaming 赌博 涉赌 网赌 跨境赌博 赌博网站",
    Category.MONEY_LAUNDERING: "laundering aml 涉嫌洗钱 反洗钱 地下钱庄 非法集资",
    Category.IDENTITY_THEFT: "impersonation stolen-identity 身份冒用 冒名 冒名开户 盗用身份 身份盗用 冒用他人身份",
    Category.PHISHING: "phishing-site 钓鱼网站 网络钓鱼 钓鱼短信 仿冒网站 木马",
    Category.SANCTIONS: "sanction sanctioned sanctions-list 制裁 制裁对象 涉恐 恐怖融资 涉恐名单",
    Category.SUSPICIOUS_DEVICE: "device suspicious 猫池 群控设备 goip设备 goip 异常设备 多开设备",
    Category.OTHER: "others misc 其它 其他风险",
}
_BASIS_ALIASES = {
    Basis.POLICE_CERTIFIED: (
        "police police-notice 公安 公安机关 公安机关认定 警方 警方认定 公安通报 公安机关通报 反诈中心 反诈中心认定 司法机关 公安移送 警方通报"
    ),
    Basis.COURT: "court-order judgment judgement 法院 法院判决 判决 裁定 司法裁判 法院裁定 生效判决",
    Basis.OWN_INVESTIGATION: "own internal investigation internal-investigation 自查 本行调查 行内调查 内部调查 本行认定 自主排查 "
    "行内排查 模型命中 人工核查",
    Basis.REPORT: "reported victim-report customer-report complaint 客户举报 群众举报 投诉 客户投诉 报案 受害人举报 投诉举报 线索",
    Basis.OFFICIAL_LIST: "official list published-list 官方 公开名单 监管名单 人民银行名单 人行名单 工信部名单 国际制裁名单 监管下发",
}
# An account on which payment is stopped or that is frozen is listed as before: its entry stands.
_STATUS_ALIASES = {
    Status.ACTIVE: "valid live in-force 正常 生效 生效中 在用 有效中 止付 已止付 冻结 已冻结 管控 管控中 限制 已限制 紧急止付",
    Status.CONTESTED: "disputed under-appeal appealed 申诉中 异议 异议中 复核中 有争议 待复核",
    Status.SUSPENDED: "paused on-hold 已暂停 中止 暂缓",
    Status.WITHDRAWN: "removed deleted lifted revoked 已撤回 撤销 已撤销 解除 已解除 删除 已删除 移除 解除止付 解冻 已解冻 失效",
    Status.EXPIRED: "ended lapsed 已到期 过期 已过期",
}
_REASON_ALIASES = {
    Reason.NONE: "- 空 没有",
    Reason.FIRST_LEVEL_RECIPIENT: "first-level 一级卡 一级收款账户 一级涉案账户",
    Reason.SECOND_LEVEL_RECIPIENT: "second-level 二级卡 二级收款账户 二级涉案账户",
    Reason.SHARED_PHONE: "共用手机 同一手机号",
    Reason.SHARED_DEVICE: "同一设备 共用同一设备",
    Reason.NIGHT_BURST: "夜间交易 夜间集中转账",
    Reason.SANCTIONS_PROGRAMME: "sanctions-program 制裁计划 制裁",
    Reason.VICTIM_REPORT: "被害人报案 报案 客户报案",
    Reason.REMOVED_BY_SOURCE: "来源移除 源名单移除",
    Reason.APPEAL_UPHELD: "申诉通过 异议成立",
    Reason.OPERATOR_DECISION: "操作员决定 人工处理",
    Reason.OTHER: "others 其它",
}
SEVERITIES = {
    "very-low": 1, "极低": 1, "低": 2, "low": 2, "低风险": 2, "中": 3, "medium": 3, "中风险": 3, "高": 4, "high": 4, "高风险": 4,
    "极高": 5, "very-high": 5, "极高风险": 5,
}  # fmt: skip


_UNSEEN = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"))  # zero-width characters


def key(text: str) -> str:
    """How words are compared: NFKC, lower case, words joined by hyphens."""
    plain = unicodedata.normalize("NFKC", text).translate(_UNSEEN).strip().lower()
    return re.sub(r"[\s_-]+", "-", plain)


def _aliases(table: dict[_E, str]) -> dict[str, _E]:
    return {key(word): each for each, text in table.items() for word in text.split()}


def _table(enum: type[_E], chinese: dict[_E, str], aliases: dict[_E, str]) -> dict[str, _E]:
    names = {slug(each): each for each in enum} | {key(chinese[each]): each for each in enum}
    return _aliases(aliases) | names


CATEGORIES = _table(Category, CATEGORY_ZH, _CATEGORY_ALIASES)
BASES = _table(Basis, BASIS_ZH, _BASIS_ALIASES)
STATUSES = _table(Status, STATUS_ZH, _STATUS_ALIASES)
REASONS = _table(Reason, REASON_ZH, _REASON_ALIASES)
KINDS: dict[str, Kind] = (
    {key(word): kind for kind, text in _KIND_ALIASES.items() for word in text.split()}
    | {kind.value: kind for kind in Kind}
    | {key(KIND_ZH[kind]): kind for kind in Kind}
)
CHOICES = {
    "kind": [f"{kind.value} {KIND_ZH[kind]}" for kind in Kind],
    "category": [f"{slug(each)} {text}" for each, text in CATEGORY_ZH.items()],
    "basis": [f"{slug(each)} {text}" for each, text in BASIS_ZH.items()],
    "status": [f"{slug(each)} {text}" for each, text in STATUS_ZH.items()],
    "reason": [f"{slug(each)} {text}" for each, text in REASON_ZH.items()],
}


def one_of(what: str) -> str:
    """What an error says of a word that is not known: the accepted ones, in both languages."""
    return f"not one of {', '.join(CHOICES[what])}; the words clerks use for them are in docs/importing.md"


@functools.lru_cache(maxsize=1_024)
def kind_of(text: str) -> Kind | None:
    """The kind a word stands for, or None."""
    return KINDS.get(key(text))
