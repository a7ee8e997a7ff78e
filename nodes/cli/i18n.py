"""Chinese or English: by `--lang`, `LIANFANG_LANG`, or the locale. Both texts stand side by side where they are used."""

import os
import sys
from collections.abc import Mapping
from typing import Any

from protocols.label import slug

from .. import words


def _chosen() -> str:
    arguments = sys.argv[1:]
    for i, argument in enumerate(arguments):
        if argument.startswith("--lang="):
            return argument.removeprefix("--lang=")
        if argument == "--lang" and i + 1 < len(arguments):
            return arguments[i + 1]
    for variable in ("LIANFANG_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        value = os.environ.get(variable)
        if value:
            return value
    return "en"


CHINESE = _chosen().lower().startswith("zh")


def t(english: str, chinese: str) -> str:
    """The text in the chosen language."""
    return chinese if CHINESE else english


_TABLES: tuple[Mapping[Any, str], ...] = (
    words.CATEGORY_ZH,
    words.BASIS_ZH,
    words.STATUS_ZH,
    words.REASON_ZH,
)
_WORDS = {slug(each): text for table in _TABLES for each, text in table.items()} | {
    kind.value: text for kind, text in words.KIND_ZH.items()
}
_WORDS |= {
    "hit": "命中",
    "miss": "未命中",
    "expired": "已到期",
    "unreadable": "记录无法打开",
    "review": "需复核",
    "answered": "已答复",
    "refused": "被拒绝",
    "timeout": "超时",
    "unreachable": "无法连接",
    "failed": "失败",
    "current": "最新",
    "account-opening": "开户",
    "payment": "支付",
    "case-investigation": "案件调查",
    "screening": "筛查",
    "running": "进行中",
    "finished": "已完成",
    "stopped": "已终止",
    "pending": "未完成",
    "proposed": "待批准",
    "waiting": "待第二人批准",
    "done": "已执行",
    "operator": "操作员",
    "analyst": "分析员",
    "approver": "批准人",
    "auditor": "审计员",
    "administrator": "管理员",
    "active": "生效",
    "rejected": "已拒绝",
    "revoked": "已终止",
    "approved": "已批准",
    "lookup": "名单查询",
    "job": "联合任务",
    "psi": "集合求交",
    "intersection": "交集",
    "cardinality": "交集大小",
    "sum": "交集求和",
    "alignment": "样本对齐",
    "mask": "盲化",
    "send": "发送",
    "receive": "接收",
    "double": "二次盲化",
    "epoch": "周期",
    "day": "当日",
    "not-asked": "未查询",
    "not-offered": "未提供",
}


def word(text: str) -> str:
    """A code's word in the chosen language."""
    return _WORDS.get(text, text) if CHINESE else text
