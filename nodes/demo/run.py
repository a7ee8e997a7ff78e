"""The play: a network comes up, lists are sealed, one question goes to all, and everything is checked."""

import datetime as dt
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from lianfang.v1 import node_pb2, node_pb2_grpc
from rich.panel import Panel
from rich.tree import Tree

from protocols.identifiers import normalise

from ..cli.common import err, out, size, table
from ..cli.i18n import t, word
from ..identity import certificates
from ..identity.members import MemberBook
from ..identity.names import MemberName, Role
from ..ledger import bundle as bundles
from ..policy import PURPOSE_NAMES
from . import story as stories
from . import views
from .network import CONTRACT, Network, program, running
from .story import Story


class _Checks:
    """What must hold; a difference is shown and makes the demonstration fail."""

    def __init__(self) -> None:
        self.failed = 0

    def expect(self, what: str, holds: bool, detail: str = "") -> None:
        mark = "[green]✓[/green]" if holds else "[red]✗[/red]"
        out.print(f" {mark} ", end="")
        out.print(what + (f" — {detail}" if detail else ""), markup=False)
        self.failed += not holds


def _act(number: int, title: str) -> None:
    if sys.stdin.isatty() and sys.stdout.isatty() and number > 1:
        err.input(f"[dim]{t('Enter to go on', '回车继续')}[/dim] ")
    out.print()
    out.rule(f"{number}. {title}", align="left")
    out.file.flush()  # what the commands print comes behind it


def run(folder: Path | None, seed: int, entries: int) -> bool:
    """Play everything; whether all checks held."""
    keep = folder is not None
    place = folder or Path(tempfile.mkdtemp(prefix="lianfang-demo-"))
    if keep and place.exists() and any(place.iterdir()):
        shutil.rmtree(place / "network", ignore_errors=True)
    checks = _Checks()
    started = time.monotonic()
    try:
        story = stories.make(seed, entries, dt.datetime.now(dt.UTC).date())
        place.mkdir(parents=True, exist_ok=True)
        files = stories.write(story, place)
        _act(1, t("The case", "案情"))
        _show_case(story)
        _act(
            2,
            t(
                "A network comes up: a CA, three banks, the anti-fraud centre, the regulator",
                "组网：证书机构、三家银行、反诈中心、监管方",
            ),
        )
        with running(place / "network", capture=True, learning=True) as network:
            _show_members(network)
            _act(
                3,
                t(
                    "They agree on who may ask what: a contract, signed by two people at each",
                    "先订合约：谁可以问什么（各方均须两人签署）",
                ),
            )
            _agree(network, checks)
            _act(4, t("Each bank imports and seals its own list", "各银行导入并加密封装自己的名单"))
            _import(network, story, files, checks)
            _act(
                5,
                t(
                    "The centre syncs the sealed lists: noise without the keys",
                    "中心同步加密名单：没有密钥只是噪声",
                ),
            )
            _sync(network, checks)
            _act(
                6, t("One question of 1,000 identifiers to three banks at once", "1000 个标识同时问三家银行")
            )
            document = _ask(network, story, files, checks)
            _act(
                7,
                t(
                    "What each side has learnt, from the captured messages",
                    "各方知道了什么（根据抓取的报文）",
                ),
            )
            _learnt(network, story, document, checks)
            _act(8, t("A bank runs into its budget", "一家银行用完额度"))
            _budget(network, story, checks)
            _act(9, t("A foreign certificate is refused", "外来证书被拒绝"))
            _foreign(network, checks)
            _act(
                10,
                t(
                    "Three banks train one model; the coordinator sees neither data nor sums",
                    "三家银行联合训练一个模型；协调方看不到数据与求和结果",
                ),
            )
            _train(network, seed, checks)
            _act(
                11,
                t(
                    "The evidence of the case: recorded by both sides, witnessed by four, checked offline",
                    "案件证据：双方记录，四方见证，离线核验",
                ),
            )
            _evidence(network, place, checks)
    finally:
        if not keep:
            shutil.rmtree(place, ignore_errors=True)
    seconds = time.monotonic() - started
    out.print()
    if checks.failed:
        out.print(t(f"[red]{checks.failed} checks failed[/red]", f"[red]{checks.failed} 项检查未通过[/red]"))
    else:
        out.print(
            t(
                f"[green]All checks held[/green] ({seconds:.0f} s).",
                f"[green]检查全部通过[/green]（{seconds:.0f} 秒）。",
            )
        )
    if keep:
        out.print(t(f"The network is in {place}/network.", f"网络保留在 {place}/network。"))
    return not checks.failed


def _train(network: Network, seed: int, checks: _Checks) -> None:
    from . import training

    rows = training.write_rows(network, seed)
    network.start_learning("coordinator", *training.BANKS)
    with err.status(
        t("SuperLink and SuperNodes start, then the job runs", "启动 SuperLink 与 SuperNode 并运行任务")
    ):
        outcome, models = training.train(network)
    contents = {bank: path.read_bytes() for bank, path in models.items()}
    found = training.compare(rows, models[training.BANKS[0]])
    shown = table(
        "",
        t("tested on all banks' rows", "在全部测试数据上"),
        "AUPRC",
        "AUROC",
        t("recall at 1 % alerts", "1% 告警召回"),
    )
    for bank, quality in found.items():
        who = t(f"{bank} alone", f"{bank} 单独") if bank else t("together", "联合")
        shown.add_row(
            who, f"{quality.auprc:.3f}", f"{quality.auroc:.3f}", f"{quality.recall_at_1_percent:.3f}"
        )
    out.print(shown)
    sums = int(outcome["room"]["sums"])
    seconds = outcome["seconds"]
    checks.expect(
        t("the three banks hold the same model", "三家银行持有同一模型"),
        len(contents) == 3 and len(set(contents.values())) == 1,
        t(f"{sums} secure sums, {seconds} s", f"{sums} 次安全求和，{seconds} 秒"),
    )
    alone = [quality.auprc for bank, quality in found.items() if bank]
    checks.expect(
        t("it is better than the banks' own on average", "平均优于各银行单独训练的模型"),
        found[""].auprc > sum(alone) / len(alone),
    )
    coordinator = network.node("coordinator")
    held = views.contents(network.log("coordinator"), network.log("coordinator-learn"), coordinator)
    digest = hashlib.sha256(contents[training.BANKS[0]]).hexdigest().encode()
    leaked = [path for path, data in held if digest in data]
    checks.expect(
        t("the coordinator holds no model", "协调方没有模型"),
        not leaked and not list(coordinator.rglob("model*.json")),
    )


def _show_case(story: Story) -> None:
    total = sum(account.amount for account in story.accounts if account.level == 1)
    tree = Tree(
        t(f"victim, {total:,} CNY gone between 01:40 and 02:10", f"受害人，01:40–02:10 转出 {total:,} 元")
    )
    for i, account in enumerate(story.accounts):
        if account.level != 1:
            continue
        branch = tree.add(f"{account.at:%H:%M}  {account.amount:>6,}  {account.bank}  …{account.card[-4:]}")
        for fed in story.accounts:
            if fed.source == i:
                branch.add(f"{fed.at:%H:%M}  {fed.amount:>6,}  {fed.bank}  …{fed.card[-4:]}")
    out.print(tree)
    phones = len({account.phone for account in story.accounts})
    devices = len({account.device for account in story.accounts})
    out.print(
        t(
            f"26 accounts, but only {phones} telephones and {devices} devices: a crew works them.",
            f"26 个账户，却只有 {phones} 个手机号和 {devices} 台设备：有团伙操作。",
        )
    )


def _show_members(network: Network) -> None:
    shown = table("", t("member", "成员"), t("process", "进程"), t("answers on", "地址"))
    for member in network.members:
        name = MemberName(network.settings.network, Role(member.role), member.name)
        shown.add_row(str(name), str(network.pid(member.name)), f"127.0.0.1:{network.ports[member.name]}")
    out.print(shown)
    done = network.run(stories.BANKS[0], "user", "list")
    out.print(done.stdout.rstrip(), markup=False)


def _second(network: Network, member: str, said: str, checks: _Checks, what: str) -> None:
    """A command was refused because it takes two; the second person looks at it and approves."""
    found = re.search(r"approve\s+([0-9a-f]{12})", said)
    checks.expect(what, found is not None)
    if found is not None:
        out.print(network.run(member, "pending", "list").stdout.rstrip(), markup=False)
        done = network.run(member, "pending", "approve", found[1], check=False)
        out.print(done.stdout.rstrip() + done.stderr, markup=False)


def _agree(network: Network, checks: _Checks) -> None:
    """Before the contract is in force a question is refused; then one proposes and the others approve."""
    banks = stories.BANKS
    refused = network.json("centre", "sync", check=False)
    checks.expect(
        t("without a contract no bank offers the centre a list", "没有合约，任何银行都不向中心提供名单"),
        not any(step["list"] for step in refused),
    )
    alone = network.run(banks[0], "contract", "propose", str(CONTRACT), check=False, alone=True)
    out.print(alone.stderr.strip(), markup=False)
    what = t("the operator alone proposes nothing", "操作员一人不能提出合约")
    _second(network, banks[0], alone.stderr, checks, what)
    done = network.run(banks[0], "contract", "propose", str(CONTRACT))
    out.print(done.stdout.rstrip(), markup=False)
    (proposed,) = network.json(banks[0], "contract", "list")
    name = proposed["contract"]
    for member in (*banks[1:], "centre"):
        network.wait_for_contract(member, name, "proposed")
        done = network.run(member, "contract", "approve", name[:12])
        out.print(f"{member}: {done.stdout.strip()}", markup=False)
    for member in (*banks, "centre"):
        network.wait_for_contract(member, name, "active")
    logged = []
    for member in (*banks, "centre"):
        (stands,) = network.json(member, "contract", "list")
        logged.append((stands["state"], len(stands["acts"])))
    checks.expect(
        t("signed by all four, in force at each of them", "四方均已签署，合约在各方生效"),
        logged == [("active", 4)] * 4,
    )


def _import(network: Network, story: Story, files: dict[str, Path], checks: _Checks) -> None:
    name = network.settings.list
    for bank in stories.BANKS:
        out.print(f"[bold]{bank}[/bold]")
        done = network.run(bank, "list", "import", str(files[bank]), "--list", name, "--skip-bad", show=True)
        out.print(done.stdout.strip(), markup=False)
        network.run(bank, "list", "activate", name)  # takes two
        stats = network.json(bank, "list", "stats", name)
        good = len(story.rows[bank]) - story.dirty[bank]
        expired = stats["counts"]["status"].get("expired", 0)
        checks.expect(
            t(
                f"{story.dirty[bank]} dirty rows reported, all others stored",
                f"报告 {story.dirty[bank]} 行坏数据，其余入库",
            ),
            stats["live"] + expired == good,
        )
    bank, value = story.withdrawn
    path = network.folder / "appeal.csv"
    path.write_text(f"kind,value\ncard,{value}\n", "utf-8")
    result = network.json(bank, "list", "withdraw", name, "--file", str(path), "--reason", "appeal-upheld")
    checks.expect(
        t(f"{bank} withdraws an entry after an appeal", f"{bank} 因申诉成立撤回一条"), result["changed"] == 1
    )


def _sync(network: Network, checks: _Checks) -> None:
    done = network.run("centre", "sync", show=True)
    out.print(done.stdout.rstrip(), markup=False)
    status = network.json("centre", "status")
    checks.expect(
        t("three copies, each current", "三份副本均为最新"), len(status["copies"]) == len(stories.BANKS)
    )


def _ask(network: Network, story: Story, files: dict[str, Path], checks: _Checks) -> dict[str, Any]:
    result = network.folder / "answers.json"
    question = (
        *("query", str(files["question"]), "--purpose", "case-investigation", "--case", "2026-0419"),
        *("--basis", "police-request", "--output", str(result)),
    )
    alone = network.run("centre", *question, check=False, alone=True)
    out.print(alone.stderr.strip(), markup=False)
    what = t("the analyst alone asks no bulk question", "分析员一人不能批量查询")
    _second(network, "centre", alone.stderr, checks, what)
    done = network.run("centre", *question, show=True, check=False)
    out.print(done.stdout.rstrip(), markup=False)
    checks.expect(t("every bank answered", "各银行均已答复"), done.returncode == 0)
    document: dict[str, Any] = json.loads(result.read_text("utf-8"))
    found = {
        (row["value"], answer["member"]): answer["category"]
        for row in document["rows"]
        for answer in row["answers"]
        if answer["outcome"] == "hit"
    }
    wrong = set(found.items()) ^ set(story.expected.items())
    checks.expect(
        t(
            f"{len(found)} hits, exactly the {len(story.expected)} planted ones",
            f"{len(found)} 个命中，与预埋的 {len(story.expected)} 个完全一致",
        ),
        not wrong,
        t(f"{len(wrong)} differ", f"{len(wrong)} 处不同") if wrong else "",
    )
    values = {value for value, _ in found}
    checks.expect(t("the expired entry does not hit", "到期条目不命中"), story.expired[1] not in values)
    checks.expect(t("the withdrawn entry does not hit", "撤回条目不命中"), story.withdrawn[1] not in values)
    age = next(
        (
            answer["age_days"]
            for row in document["rows"]
            if row["value"] == story.reissued[1]
            for answer in row["answers"]
            if answer["outcome"] == "hit"
        ),
        -1,
    )
    checks.expect(
        t(f"the reissued number shows its age: {age} days", f"重新放号的手机号显示其时间：{age} 天"),
        age == 171,
    )
    return document


def _learnt(network: Network, story: Story, document: dict[str, Any], checks: _Checks) -> None:
    asked = {value for _, value in story.question}
    needles = views.traces(asked, [normalise(kind, value).canonical for kind, value in story.question])
    shown = table(
        "",
        *(
            t("the holder", "持有方"),
            t("knows who asked", "知道谁问"),
            t("purpose", "目的"),
            t("points seen", "看到的点"),
        ),
        *(t("in / out", "收 / 发"), t("identifiers or hashes of them", "其中的标识或其哈希")),
    )
    for bank in stories.BANKS:
        messages = views.read(network.node(bank) / "data" / "capture.jsonl")
        found = views.search(messages, needles)
        for view in views.holder_view(messages):
            purposes = ", ".join(word(PURPOSE_NAMES[purpose]) for purpose in view.purposes)
            shown.add_row(
                bank,
                view.member.rsplit("/", 1)[1],
                purposes,
                f"{view.points:,} × 32 B",
                f"{size(view.bytes_in)} / {size(view.bytes_out)}",
                f"{found} / {len(needles):,}",
            )
            checks.expect(
                t(f"{bank} saw no identifier and no point twice", f"{bank} 未见任何标识，也无重复的点"),
                found == 0 and view.repeated_points == 0,
            )
    out.print(shown)
    centre = views.read(network.node("centre") / "data" / "capture.jsonl")
    entries = [row for rows in story.rows.values() for row in rows]
    sample = [
        row[1] for row in entries[:: max(1, len(entries) // 2_000)] if row[1] not in asked and len(row[1]) > 8
    ]
    leaked = views.search(centre, views.traces(sample, []))
    hits = sum(answer["outcome"] == "hit" for row in document["rows"] for answer in row["answers"])
    text = t(
        f"The centre received {size(views.synced_bytes(centre))} of sealed lists. It has learnt {hits} labels and "
        f"that the other {len(story.question) * 3 - hits:,} answers are no.",
        f"中心收到 {size(views.synced_bytes(centre))} 的加密名单。它得知 {hits} 个标签，以及其余 "
        f"{len(story.question) * 3 - hits:,} 个回答为否。",
    )
    out.print(Panel(text, expand=False))
    checks.expect(
        t(
            f"of {len(sample):,} listed values it did not ask about, none occurs in what it received",
            f"抽取它没有问的 {len(sample):,} 个名单值，收到的数据中一个也没有",
        ),
        leaked == 0,
    )


def _budget(network: Network, story: Story, checks: _Checks) -> None:
    statuses = []
    network.run("bank-c", "sync", "bank-a")
    for part in (story.lone[:60], story.lone[60:]):
        done = network.run(
            "bank-c",
            *("query", "-", "--purpose", "account-opening", "--case", "opening-desk"),
            *("--basis", "customer-consent", "--to", "bank-a"),
            text="\n".join(part) + "\n",
            check=False,
        )
        statuses.append(done.returncode)
        out.print(done.stdout.strip().splitlines()[-1], markup=False)
    checks.expect(
        t("the first question is answered, the second refused", "第一问被答复，第二问被拒绝"),
        statuses == [0, 1],
    )
    refused = network.json("bank-a", "status")["refused_today"]
    checks.expect(
        t("bank-a has recorded the refusal", "bank-a 已记录拒绝"),
        any(each["reason"] == "BUDGET" for each in refused),
    )


def _evidence(network: Network, place: Path, checks: _Checks) -> None:
    """One file proves what was asked and answered; it is checked by a process that knows the CA alone."""
    file = place / "case-2026-0419.bundle.json"
    network.run("centre", "ledger", "bundle", "2026-0419", "--out", str(file))
    certificate = str(network.node("regulator") / "certs" / "ca.crt")
    command = program(["lianfang", "ledger", "verify", str(file), "--ca", certificate])
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    out.print(done.stdout.rstrip() + done.stderr, markup=False)
    found = bundles.verify(file.read_bytes())
    kinds = [bundles.type_name(each.committed.event.type) for each in found.entries if each.in_case]
    checks.expect(
        t("both sides' records of every question are proven", "双方对每次查询的记录均得到证明"),
        done.returncode == 0
        and kinds.count("query-asked") == kinds.count("query-answered") >= len(stories.BANKS),
        f"{len(kinds)}",
    )
    checks.expect(
        t(
            "each stands in a head that at least three of four witnesses cosigned",
            "每条均在至少三方联署的账本头中",
        ),
        all(len(each.head.cosigned) >= each.quorum == 3 for each in found.entries),
    )
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    try:
        bundles.verify(bytes(data))
        noticed = False
    except bundles.BundleError:
        noticed = True
    checks.expect(t("one changed bit is noticed", "改动一个比特即被发现"), noticed)
    done = network.run("centre", "ledger", "reconcile", "--since", "1h", check=False)
    out.print(done.stdout.rstrip(), markup=False)
    checks.expect(t("both sides' records agree", "双方记录一致"), done.returncode == 0)
    done = network.run("regulator", "ledger", "monitor", check=False)
    out.print(done.stdout.rstrip(), markup=False)
    checks.expect(
        t("the regulator sees no contradiction in any log", "监管方未见任何账本矛盾"), done.returncode == 0
    )
    ends = []
    for bank in stories.BANKS:
        rows = network.json(bank, "ledger", "events", "--since", "1h")["events"]
        ends += [row["digest"] for row in rows if row["type"] == "job-ended"]
    checks.expect(
        t("the model's hash is in each bank's log", "模型哈希已记入各银行账本"),
        len(ends) == len(stories.BANKS) and len(set(ends)) == 1 and bool(ends[0]),
    )


def _foreign(network: Network, checks: _Checks) -> None:
    """A certificate with the centre's own name, from another CA."""
    key, ca_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    name = MemberName(network.settings.network, Role.CENTRE, "centre")
    ca = certificates.make_authority(ca_key, network.settings.network)
    own = certificates.issue(ca_key, ca, key.public_key(), name)
    path = network.node("centre") / "certs"
    real_ca = x509.load_pem_x509_certificate((path / "ca.crt").read_bytes())
    bank = MemberBook(path / "members.bin", real_ca).current.find("bank-a")
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    credentials = grpc.ssl_channel_credentials(bank.trusted_pem(), secret, certificates.pem(own))
    options = [("grpc.ssl_target_name_override", bank.name.dns)]
    with grpc.secure_channel(bank.endpoint, credentials, options) as channel:
        try:
            node_pb2_grpc.NodeInfoStub(channel).GetInfo(node_pb2.GetInfoRequest(), timeout=5)
            refused, why = False, ""
        except grpc.RpcError as error:
            refused, why = True, error.code().name
    checks.expect(t("the handshake ends before any question", "握手即被拒绝，问不了任何问题"), refused, why)
