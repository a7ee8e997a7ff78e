"""A running node: every part, put together once. `lianfang serve` alone makes one."""

import asyncio
import contextlib
import fcntl
import gc
import logging
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast
from zoneinfo import ZoneInfo

import grpc
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from lianfang.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    contract_pb2,
    contract_pb2_grpc,
    ledger_pb2,
    ledger_pb2_grpc,
    lookup_pb2,
    lookup_pb2_grpc,
    node_pb2,
    node_pb2_grpc,
    people_pb2,
    people_pb2_grpc,
    psi_pb2,
    psi_pb2_grpc,
    sync_pb2,
    sync_pb2_grpc,
)

from . import limits
from .cluster import Cluster
from .config import Home
from .contracts.book import ContractBook
from .contracts.courier import Courier
from .contracts.rules import Rules
from .errors import ConfigError, NodeError, StorageError
from .gate import Gate
from .holder.epochs import Epochs
from .holder.lists import ListStore
from .identity import certificates
from .identity.institutions import Institutions
from .identity.keys import NodeKeys
from .identity.members import Member, MemberBook
from .identity.names import Role
from .identity.own import OwnIdentity
from .ledger.book import LogBook
from .ledger.changes import Changes
from .ledger.client import LedgerClient
from .ledger.mark import Mark
from .ledger.mirrors import Mirrors
from .ledger.publisher import Publisher
from .ledger.web import LedgerWeb
from .ledger.witness import Witness
from .people.actions import Actions
from .people.book import PeopleBook
from .people.guard import PeopleOnly
from .policy import PolicyFile
from .querier.follow import Follower
from .querier.peers import Peers
from .querier.pins import Pins
from .querier.query import Asker
from .querier.questions import Questions
from .querier.sync import Syncer
from .querier.tables import Tables
from .services import wire
from .services.info import NodeInfoService
from .services.intercept import MembersOnly
from .services.lookup import LookupService
from .services.sync import ListSyncService
from .store import engine as db
from .store.writer import GroupWriter
from .workers import Workers

if TYPE_CHECKING:
    from .learning.mount import Mount

_log = logging.getLogger("lianfang.node")
_PEER_SERVICES = [
    node_pb2.DESCRIPTOR.services_by_name["NodeInfo"].full_name,
    sync_pb2.DESCRIPTOR.services_by_name["ListSync"].full_name,
    lookup_pb2.DESCRIPTOR.services_by_name["Lookup"].full_name,
    ledger_pb2.DESCRIPTOR.services_by_name["Ledger"].full_name,
    contract_pb2.DESCRIPTOR.services_by_name["Contracts"].full_name,
    psi_pb2.DESCRIPTOR.services_by_name["Psi"].full_name,
]
_ADMIN_SERVICES = [
    admin_pb2.DESCRIPTOR.services_by_name["Admin"].full_name,
    ledger_pb2.DESCRIPTOR.services_by_name["LedgerAdmin"].full_name,
    contract_pb2.DESCRIPTOR.services_by_name["ContractAdmin"].full_name,
    people_pb2.DESCRIPTOR.services_by_name["People"].full_name,
    psi_pb2.DESCRIPTOR.services_by_name["PsiAdmin"].full_name,
]
TEND_SECONDS = 30.0
TOUCH_SECONDS = 300.0
THREADS = 64
SWITCH_SECONDS = 0.0005  # threads hand the interpreter on quickly: single lookups wait for nobody's loop


def lock(folder: Path) -> IO[bytes]:
    """Hold the node's stores; raises `ConfigError` where another process does."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = (folder / "lock").open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise ConfigError(f"{folder} is in use by another `lianfang serve`") from error
    return file


def load_ca(home: Home) -> x509.Certificate:
    """Raise `ConfigError` naming the file."""
    path = home.certs / "ca.crt"
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; has the CA signed this node?") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not a PEM certificate") from error


def _bound_process() -> None:
    """No core dumps, which would hold keys; and as many open files as the system allows: idle connections of strangers would use up the
    usual 1,024 within a second.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = limits.DESCRIPTORS if hard == resource.RLIM_INFINITY else min(limits.DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if wanted < limits.DESCRIPTORS:
        _log.warning(
            "at most %d files may be open: raise the limit (nofile) to %d", wanted, limits.DESCRIPTORS
        )


class Node:
    """Opens the stores under a lock; `start` answers, `stop` lets calls in flight end well."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self._lock = lock(home.data)
        self.ca = ca = load_ca(home)
        self.keys = NodeKeys.load(home.keys)
        self.identity = OwnIdentity(home.keys, home.certs, home.name, ca)
        self.book = MemberBook(home.certs / "members.bin", ca)
        self.institutions = Institutions(self.book, home.certs)
        self.policy = PolicyFile(home.policy)
        self._ca = certificates.pem(ca)
        settings = home.config
        self.database = db.connect(home.data / "node.db", "node")
        home.epoch_keys.mkdir(mode=0o700, exist_ok=True)
        mark = Mark(home.epoch_keys / "ledger.mark")
        self.log = LogBook(self.database, self.keys, home.name, settings.ledger, mark)
        self.workers = Workers(settings.node.workers)
        self.cluster = Cluster(settings.node.cluster, self.workers) if settings.node.cluster else None
        self.lists = ListStore(
            db.connect(home.data / "lists.db", "lists"),
            self.keys.list_vault,
            before=self.keys.vault,
            directory=lambda: self.institutions.current,
        )
        self.epochs = Epochs(
            self.database,
            self.lists,
            self.keys,
            home.name,
            home.data / "lists",
            home.epoch_keys,
            settings.lists,
            self.cluster or self.workers,
            self.log,
        )
        self.writer = GroupWriter(self.database)
        self.contracts = ContractBook(self.database, self.log, self.keys, self.book, home.name)
        self.rules = Rules(self.contracts, self.policy, str(home.name))
        try:
            zone = ZoneInfo(settings.node.time_zone)
        except (ValueError, OSError, LookupError) as error:
            raise ConfigError(f"{home.file}: node.time_zone: {settings.node.time_zone!r} is none") from error
        self.gate = Gate(self.database, self.writer, self.rules, self.log, zone=zone)
        self.pins = Pins(self.database)
        self.ledger_client = LedgerClient(home)
        self.mirrors = Mirrors(
            db.connect(home.data / "mirrors.db", "mirrors"),
            self.database,
            self.book,
            str(home.name),
            self.ledger_client,
            self.pins,
            self.keys.vault,
            settings.ledger,
            home.data / "evidence",
        )
        self.changes = Changes(self.database, self.log, self.book, [home.file, home.policy])
        self.publisher = Publisher(self.log, self.writer, self.book, self.ledger_client, self.changes)
        self._witness = Witness(self.database, self.writer, self.keys, home.name, self.book, mark)
        self._web = LedgerWeb(home, self.book, self.log, self._witness, self.mirrors)
        self.capture = wire.Capture(home.capture)
        self.tables = Tables(home.data / "peers")
        self.peers = Peers(self.book, self.identity)
        self.syncer = Syncer(
            self.database,
            self.tables,
            self.peers,
            self.book,
            home.name,
            settings.ask,
            self.capture,
            self.pins,
            self.mirrors,
            self.institutions,
        )
        self.follower = Follower(str(home.name), self.peers, self.book, self.syncer)
        vault = self.keys.vault
        self.people = PeopleBook(
            self.database,
            self.writer,
            self.log,
            vault,
            home.name,
            home.process_token,
            home.owner_token,
            settings.node.owner_invites,
        )
        self.actions = Actions(self.database, self.writer, self.log, vault, self.people, self.policy)
        self.questions = Questions(
            self.database,
            self.writer,
            vault,
            settings.ask.keep_answers_hours,
            self.log,
            self.actions.tally,
        )
        self.asker = Asker(
            home.name,
            self.peers,
            self.syncer,
            self.tables,
            self.questions,
            self.workers,
            settings.ask,
            self.capture,
            self.log,
            self.rules,
            self.follower,
            self.institutions,
        )
        self.courier = Courier(self.contracts, self.peers, str(home.name))
        self._authenticator = wire.Authenticator(self.book)
        self._lookup = LookupService(
            self._authenticator, self.epochs, self.gate, self.workers, self.capture, self.log
        )
        self._members_only = MembersOnly(self._authenticator)
        self._people_only = PeopleOnly(self.people)
        self._servers: list[grpc.aio.Server] = []
        self._learning: Mount | None = None
        self._health = wire.Health()
        self._tasks: list[asyncio.Task[None]] = []
        self._newer_list = asyncio.Event()

    # -- serving ---------------------------------------------------------------------------------------------

    async def start(self) -> str:
        """Answer members on `node.listen` and the node's own people on the socket; returns the address."""
        from .contracts.book import PSI
        from .contracts.service import ContractAdminService, ContractService
        from .ledger.service import LedgerAdminService, LedgerService
        from .people.service import PeopleService
        from .psi.service import PsiAdminService, PsiService, Sessions, check_terms
        from .services.admin import AdminService
        from .services.asking import Asking
        from .services.screening import Screenings

        address = self.home.config.node.listen
        server = grpc.aio.server(
            options=wire.SERVER_OPTIONS,
            maximum_concurrent_rpcs=limits.CONCURRENT_CALLS,
            interceptors=[self._members_only],
        )
        info = NodeInfoService(
            self.home.name,
            self.book,
            self._authenticator,
            self.lists,
            self.epochs,
            self.gate,
            self.capture,
            self._newer_list.set,
            self.institutions,
        )
        node_pb2_grpc.add_NodeInfoServicer_to_server(info, server)
        self._sync = ListSyncService(
            self._authenticator, self.lists, self.epochs, self.gate, self.capture, self.log
        )
        sync_pb2_grpc.add_ListSyncServicer_to_server(self._sync, server)
        lookup_pb2_grpc.add_LookupServicer_to_server(self._lookup, server)
        ledger_pb2_grpc.add_LedgerServicer_to_server(LedgerService(self._authenticator, self.log), server)
        contract_pb2_grpc.add_ContractsServicer_to_server(
            ContractService(self._authenticator, self.contracts), server
        )
        self.asking = Asking(self)
        self.screenings = Screenings(self, self.asking)
        self.sessions = sessions = Sessions(self)
        sessions.clear()
        self.contracts.check_before_signing(PSI, check_terms)
        psi_pb2_grpc.add_PsiServicer_to_server(PsiService(self._authenticator, self, sessions), server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        admin = grpc.aio.server(
            options=wire.ADMIN_OPTIONS,
            maximum_concurrent_rpcs=limits.CALLS_ON_SOCKET,
            interceptors=[self._people_only],
        )
        self._add_learning(server, admin)
        learning = self._learning
        peer_services = [*_PEER_SERVICES, *(learning.peer_services if learning else ())]
        admin_services = [*_ADMIN_SERVICES, *(learning.admin_services if learning else ())]
        reflection.enable_server_reflection([*peer_services, reflection.SERVICE_NAME], server)
        # The stubs do not know that the fetcher may answer `None`.
        fetch = cast(Callable[[], grpc.ServerCertificateConfiguration], self._renewed)
        credentials = grpc.dynamic_ssl_server_credentials(
            self._tls(), fetch, require_client_authentication=True
        )
        try:
            port = server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise ConfigError(f"{self.home.file}: node.listen: cannot listen on {address}") from error
        admin_pb2_grpc.add_AdminServicer_to_server(AdminService(self), admin)
        ledger_pb2_grpc.add_LedgerAdminServicer_to_server(LedgerAdminService(self), admin)
        contract_pb2_grpc.add_ContractAdminServicer_to_server(
            ContractAdminService(self.contracts, self.actions), admin
        )
        people_pb2_grpc.add_PeopleServicer_to_server(PeopleService(self.people, self.actions), admin)
        psi_pb2_grpc.add_PsiAdminServicer_to_server(PsiAdminService(self, sessions), admin)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, admin)
        reflection.enable_server_reflection([*admin_services, reflection.SERVICE_NAME], admin)
        self._listen_on_socket(admin)
        await self._web.start()
        self._servers = [server, admin]
        for each in self._servers:
            await each.start()
        for service in ("", *peer_services, *admin_services):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        self._tasks = [
            asyncio.create_task(work)
            for work in (
                self._tend(),
                self._keep_in_touch(),
                self.publisher.run(),
                self.mirrors.run(),
                self.courier.run(),
                *([self.follower.run()] if self.home.config.ask.follow else []),
            )
        ]
        await self.screenings.resume()
        return f"{address.rpartition(':')[0]}:{port}"

    def _tls(self) -> grpc.ServerCertificateConfiguration:
        self._shown = self.identity.current
        return grpc.ssl_server_certificate_configuration([self._shown], self._ca)

    def _renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """At each handshake: the certificate that `enroll` has installed since, or `None` for the same one."""
        return None if self.identity.current == self._shown else self._tls()

    def _add_learning(self, server: grpc.aio.Server, admin: grpc.aio.Server) -> None:
        """The desk, and at a coordinator the rooms of secure sums. Raises `NodeError` without the extra."""
        settings = self.home.config.learn
        coordinates = self.home.name.role is Role.COORDINATOR
        if not coordinates and not settings.coordinator:
            return
        try:
            from .learning.mount import Mount
        except ImportError as error:
            raise ConfigError(
                f"{self.home.file}: learn: {error.name} is not installed; install the `learn` extra"
            ) from error
        self._learning = Mount(self, self._authenticator, coordinates)
        self._learning.add_to(server, admin)

    def _listen_on_socket(self, admin: grpc.aio.Server) -> None:
        path = self.home.socket
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # we hold the lock, so nobody listens there
        before = os.umask(0o177)
        try:
            # The file system lets in whom it may, and then everybody signs in.
            local = grpc.local_server_credentials(grpc.LocalConnectionType.UDS)
            admin.add_secure_port(f"unix:{path}", local)
        finally:
            os.umask(before)
        group = self.home.config.node.admin_group
        path.chmod(0o660 if group else 0o600)
        if group:
            try:
                shutil.chown(path, group=group)
            except (LookupError, OSError) as error:
                raise ConfigError(f"{self.home.file}: node.admin_group: {error}") from error

    async def serve(self, ready: Callable[[str], None] = lambda _address: None) -> None:
        """Start, tell `ready` the address, run until SIGTERM or SIGINT, stop."""
        sys.setswitchinterval(SWITCH_SECONDS)
        _bound_process()
        # Some commands wait for the log's next head in a thread; the head is made in another.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS, "node"))
        address = await self.start()
        gc.freeze()  # what the program consists of stays: collections, of 0.1 s each, need not look through it again
        gc.set_threshold(limits.GARBAGE)
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.set)
        _log.info("%s answers on %s", self.home.name, address)
        ready(address)
        await stopping.wait()
        _log.info("stopping: calls in flight have %.0f s", limits.GRACE.total_seconds())
        await self.stop()

    async def stop(self) -> None:
        """Refuse new calls, let those in flight end, close the stores."""
        await self._health.enter_graceful_shutdown()
        self._sync.stop()
        if self._learning is not None:
            await self._learning.close()
        grace = limits.GRACE.total_seconds()
        await asyncio.gather(self._members_only.drain(grace), self._people_only.drain(grace))
        await asyncio.gather(*(server.stop(grace) for server in self._servers))
        for task in self._tasks:
            task.cancel()
            try:
                await task
            except asyncio.CancelledError:
                pass
            except Exception:
                _log.exception("a background task had failed")
        await self.screenings.close()
        await self.mirrors.stop()
        await self._web.stop()
        await self.ledger_client.close()
        await self.peers.close()
        # Sealing that is under way stops here and resumes at the next start; a write that has begun ends.
        await asyncio.to_thread(self.workers.close)
        if self.cluster:
            await asyncio.to_thread(self.cluster.close)
        await self.sessions.stop()
        await asyncio.get_running_loop().shutdown_default_executor()
        self._close()

    def _close(self) -> None:
        self.asker.close()
        self._lookup.close()
        self.writer.close()
        self.questions.close()
        self._settle(0)
        self.tables.close()
        self.home.socket.unlink(missing_ok=True)
        self._lock.close()

    # -- housekeeping ----------------------------------------------------------------------------------------

    async def _tend(self) -> None:
        """Expire, seal, rotate, close and forget what is due; nobody else can hold this up."""
        room = db.LOG_BYTES  # nobody knows yet how much is asked here
        await asyncio.to_thread(self._settle, room)
        while True:
            try:
                names = await asyncio.to_thread(self.lists.names)
            except Exception:
                _log.exception("housekeeping failed")
                names = []
            if self.institutions.missing:
                self._newer_list.set()  # another member has it
            for name in names:
                try:
                    await asyncio.to_thread(self.epochs.tend, name)
                except Exception:
                    _log.exception("housekeeping of the list %s failed", name)
            try:
                await asyncio.to_thread(self.questions.purge)
                await asyncio.to_thread(self.screenings.purge)
                await asyncio.to_thread(self.contracts.purge)
                await asyncio.to_thread(self.people.purge)
                await asyncio.to_thread(self.actions.purge)
                await asyncio.to_thread(self.log.erase, self.home.config.ledger.keep_openings_days)
            except Exception:
                _log.exception("housekeeping of questions failed")
            used = await asyncio.to_thread(self._settle, room)
            room = min(db.LOG_BYTES, max(2 * used, room // 2))
            await asyncio.sleep(TEND_SECONDS)

    def _settle(self, room: int) -> int:
        """What was erased leaves the databases' write-ahead logs; how much of the node's own was used."""
        used = {}
        for database, ready in ((self.lists.database, 0), (self.database, room)):
            try:
                used[database] = db.settle(database, ready)
            except StorageError:
                _log.exception("housekeeping of the databases failed")
        return used.get(self.database, 0)

    async def _keep_in_touch(self) -> None:
        """Learn newer member lists (and so revocations) from the others; sync where configured."""
        loop = asyncio.get_running_loop()
        every = self.home.config.ask.sync_every_minutes * 60
        next_sync = loop.time() + every
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._newer_list.wait(), TOUCH_SECONDS)
            self._newer_list.clear()
            syncing = bool(every) and loop.time() >= next_sync
            if syncing:
                next_sync = loop.time() + every
            others = self.peers.others(str(self.home.name))
            await asyncio.gather(*(self._touch(member, syncing) for member in others))
            await asyncio.sleep(1.0)

    async def _touch(self, member: Member, syncing: bool) -> None:
        try:
            if syncing:
                await self.syncer.sync(member)
            else:
                await self.syncer.info(member, self.home.config.ask.deadline_seconds)
        except NodeError as error:
            _log.info("%s: %s", member.name.name, error)
        except Exception:
            _log.exception("%s: keeping in touch failed", member.name.name)
