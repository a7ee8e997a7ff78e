"""Names, keys, certificates, the CA and the member list."""

import base64
import datetime as dt
import json
import secrets

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from nodes.errors import ConfigError, NotFound, Refused, StorageError
from nodes.identity import certificates
from nodes.identity import keys as node_keys
from nodes.identity import members as member_lists
from nodes.identity.authority import Authority, Bundle, install, make_request, read_request
from nodes.identity.institutions import NONE, DirectoryFile, Institutions
from nodes.identity.keys import NodeKeys, Vault
from nodes.identity.members import MemberBook, MemberList
from nodes.identity.names import MemberName, Role
from protocols.errors import DecodeError
from protocols.identifiers import Directory, form

NETWORK = "test.example"
NAME = MemberName(NETWORK, Role.BANK, "bank-a")


@pytest.fixture
def ca(tmp_path):
    return Authority.create(tmp_path / "ca", NETWORK)


@pytest.fixture
def keys(tmp_path):
    node_keys.create(tmp_path / "keys")
    return NodeKeys.load(tmp_path / "keys")


@pytest.fixture
def bundle(ca, keys):
    return ca.sign(read_request(make_request(keys, NAME, "host:7443", "host:7444")))


@pytest.mark.parametrize(
    "uri",
    [
        "spiffe://n/bank/a/b",
        "spiffe://n/robber/a",
        "http://n/bank/a",
        "spiffe://n/bank/A",
        "spiffe://n/bank/",
        "spiffe:///bank/a",
    ],
)
def test_names_that_are_none(uri):
    with pytest.raises(ConfigError):
        MemberName.parse(uri)


def test_keys_are_private_and_never_replaced(tmp_path, keys):
    for name in node_keys.FILES:
        assert (tmp_path / "keys" / name).stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match="never overwritten"):
        node_keys.create(tmp_path / "keys")
    (tmp_path / "keys" / "tls.key").chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        NodeKeys.load(tmp_path / "keys")


def test_what_is_stored_opens_under_its_own_key_and_purpose_only(keys):
    data = keys.vault.encrypt(b"secret", b"entry")
    assert keys.vault.decrypt(data, b"entry") == b"secret"
    for bad, purpose in ((data, b"other"), (data[:-1] + bytes([data[-1] ^ 1]), b"entry"), (b"", b"entry")):
        with pytest.raises(StorageError):
            keys.vault.decrypt(bad, purpose)
    assert keys.storage.hex() not in repr(keys) + repr(keys.vault)


def test_a_node_is_signed_and_installed(tmp_path, ca, keys, bundle):
    install(Bundle.from_json(bundle.to_json()), keys, NAME, tmp_path / "certs")
    book = MemberBook(tmp_path / "certs" / "members.bin", ca.certificate)
    assert book.current.authenticate(bundle.certificate).name == NAME
    assert book.current.find("bank-a").endpoint == "host:7443"
    assert certificates.member_of(bundle.certificate) == NAME


def test_the_ca_never_sees_a_secret(keys):
    text = make_request(keys, NAME, "host:7443", "host:7444")
    assert "PRIVATE" not in text
    assert set(json.loads(text)) == {
        "lianfang",
        "member",
        "endpoint",
        "certificate_request",
        "signing_key",
        "sealing_key",
        "log_key",
        "witness_key",
        "ledger_endpoint",
        "proof",
    }


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("member", "spiffe://test.example/bank/bank-b"),
        ("endpoint", "elsewhere:1"),
        ("endpoint", "nonsense"),
        ("signing_key", "AAAA"),
        ("sealing_key", "AAAA"),
        ("proof", "AAAA"),
        ("proof", "%"),
        ("certificate_request", "-----BEGIN"),
        ("lianfang", "something else"),
    ],
)
def test_requests_that_were_tampered_with(keys, field, value):
    document = json.loads(make_request(keys, NAME, "host:7443", "host:7444"))
    document[field] = value
    with pytest.raises(ConfigError):
        read_request(json.dumps(document))


def test_a_signing_key_under_which_one_signature_holds_for_everything(keys):
    """Whoever had it could deny all that it signed: anybody else can sign the same."""
    document = json.loads(make_request(keys, NAME, "host:7443", "host:7444"))
    identity = (1).to_bytes(32, "little")
    document["signing_key"] = base64.b64encode(identity).decode()
    document["proof"] = base64.b64encode(identity + bytes(32)).decode()
    with pytest.raises(ConfigError, match="does not prove itself"):
        read_request(json.dumps(document))


def test_a_request_for_another_network_or_a_known_name_with_other_keys(ca, bundle, tmp_path, keys):
    with pytest.raises(ConfigError, match="not of the network"):
        ca.sign(
            read_request(make_request(keys, MemberName("other.example", Role.BANK, "bank-a"), "h:1", "h:2"))
        )
    node_keys.create(tmp_path / "thief")
    with pytest.raises(ConfigError, match="another signing key"):
        ca.sign(read_request(make_request(NodeKeys.load(tmp_path / "thief"), NAME, "h:1", "h:2")))


def test_a_renewal_keeps_the_certificate_before_it_for_a_while(ca, keys, bundle):
    second = ca.sign(read_request(make_request(keys, NAME, "host:7443", "host:7444")))
    for certificate in (bundle.certificate, second.certificate):
        assert ca.members.authenticate(certificate).name == NAME
    third = ca.sign(read_request(make_request(keys, NAME, "host:7443", "host:7444")))
    assert ca.members.authenticate(third.certificate)
    with pytest.raises(Refused) as caught:
        ca.members.authenticate(bundle.certificate)
    assert caught.value.reason == "UNBOUND_CERTIFICATE"


def test_a_new_tls_key_revokes_the_old_certificate(ca, keys, bundle, tmp_path):
    node_keys.create(tmp_path / "new")
    fresh = NodeKeys.load(tmp_path / "new")
    replaced = NodeKeys(
        keys.folder, fresh.tls, keys.signing, keys.sealing, keys.storage, keys.log, keys.witness
    )
    second = ca.sign(read_request(make_request(replaced, NAME, "host:7443", "host:7444")))
    assert ca.members.authenticate(second.certificate)
    with pytest.raises(Refused) as caught:
        ca.members.authenticate(bundle.certificate)
    assert caught.value.reason == "REVOKED_CERTIFICATE"


def test_a_name_is_taken_once_whatever_the_role(ca, bundle, tmp_path):
    node_keys.create(tmp_path / "other")
    request = make_request(
        NodeKeys.load(tmp_path / "other"), MemberName(NETWORK, Role.TELECOM, "bank-a"), "h:1", "h:2"
    )
    with pytest.raises(ConfigError, match="taken"):
        ca.sign(read_request(request))


def test_revoked_unknown_expired_foreign_and_unbound_certificates(ca, keys, bundle):
    stranger = MemberName(NETWORK, Role.BANK, "stranger")
    public = keys.tls.public_key()
    cases = {
        "NOT_A_MEMBER": certificates.issue(ca._key, ca.certificate, public, stranger),
        "FOREIGN_NETWORK": certificates.issue(
            ca._key, ca.certificate, public, MemberName("other.example", Role.BANK, "bank-a")
        ),
        "UNBOUND_CERTIFICATE": certificates.issue(ca._key, ca.certificate, public, NAME),
    }
    for reason, certificate in cases.items():
        with pytest.raises(Refused) as caught:
            ca.members.authenticate(certificate)
        assert caught.value.reason == reason
    assert ca.revoke("bank-a") == [f"{bundle.certificate.serial_number:x}"]
    with pytest.raises(Refused) as caught:
        ca.members.authenticate(bundle.certificate)
    assert caught.value.reason == "REVOKED_CERTIFICATE"
    with pytest.raises(NotFound):
        ca.revoke("bank-a")


def test_an_expired_certificate_and_clocks_that_differ_a_little(ca, keys, monkeypatch):
    bundle = ca.sign(read_request(make_request(keys, NAME, "host:7443", "host:7444")), days=1)
    real = certificates.now
    for shift, reason in (
        (dt.timedelta(days=1, minutes=6), "EXPIRED_CERTIFICATE"),
        (dt.timedelta(minutes=-11), "EARLY_CERTIFICATE"),
    ):
        monkeypatch.setattr(certificates, "now", lambda shift=shift: real() + shift)
        with pytest.raises(Refused) as caught:
            ca.members.authenticate(bundle.certificate)
        assert caught.value.reason == reason
    for shift in (dt.timedelta(days=1, minutes=4), dt.timedelta(minutes=-9)):
        monkeypatch.setattr(certificates, "now", lambda shift=shift: real() + shift)
        ca.members.authenticate(bundle.certificate)


@pytest.mark.parametrize(
    "alternative", [[], ["spiffe://test.example/bank/bank-a"] * 2, ["spiffe://test.example/bank/bank-b"]]
)
def test_certificates_that_name_none_or_several_or_another(ca, keys, alternative):
    builder = (
        x509.CertificateBuilder()
        .subject_name(ca.certificate.subject)
        .issuer_name(ca.certificate.subject)
        .public_key(keys.tls.public_key())
        .serial_number(5)
        .not_valid_before(certificates.now())
        .not_valid_after(certificates.now() + dt.timedelta(days=1))
    )
    names = [x509.DNSName(NAME.dns), *map(x509.UniformResourceIdentifier, alternative)]
    certificate = builder.add_extension(x509.SubjectAlternativeName(names), critical=False).sign(
        ca._key, hashes.SHA256()
    )
    with pytest.raises(Refused) as caught:
        ca.members.authenticate(certificate)
    assert caught.value.reason == "FOREIGN_CERTIFICATE"


def test_the_member_list_is_the_cas_or_none(ca, bundle, tmp_path):
    signed = ca.members.signed
    for position in range(0, len(signed), 7):
        forged = bytearray(signed)
        forged[position] ^= 1
        with pytest.raises(ConfigError):
            MemberList(bytes(forged), ca.certificate)
    other = Authority.create(tmp_path / "other", NETWORK)
    with pytest.raises(ConfigError, match="not signed"):
        MemberList(signed, other.certificate)


def test_a_node_never_goes_back_to_an_older_member_list(ca, keys, bundle, tmp_path):
    old = ca.members.signed
    path = tmp_path / "members.bin"
    ca.revoke("bank-a")
    path.write_bytes(ca.members.signed)
    book = MemberBook(path, ca.certificate)
    assert not book.offer(old)
    assert book.current.version == ca.members.version
    with pytest.raises(ConfigError, match="choose another"):  # its log and its witnesses' memory of it stay
        ca.sign(read_request(make_request(keys, NAME, "host:7443", "host:7444")))
    ca.reissue()
    assert book.offer(ca.members.signed)
    assert MemberList(path.read_bytes(), ca.certificate).version == ca.members.version
    elsewhere = Authority.create(tmp_path / "elsewhere", NETWORK)
    with pytest.raises(ConfigError):
        book.offer(elsewhere.members.signed)


def test_a_bundle_for_another_node_key_or_ca_is_not_installed(ca, keys, bundle, tmp_path):
    certs = tmp_path / "certs"
    with pytest.raises(ConfigError, match="is for"):
        install(bundle, keys, MemberName(NETWORK, Role.BANK, "bank-b"), certs)
    node_keys.create(tmp_path / "other-keys")
    with pytest.raises(ConfigError, match="not for this node's key"):
        install(bundle, NodeKeys.load(tmp_path / "other-keys"), NAME, certs)
    install(bundle, keys, NAME, certs)
    foreign = Authority.create(tmp_path / "foreign", NETWORK)
    with pytest.raises(ConfigError, match="another CA"):
        install(foreign.sign(read_request(make_request(keys, NAME, "h:1", "h:2"))), keys, NAME, certs)
    old = bundle
    install(ca.sign(read_request(make_request(keys, NAME, "h:3", "h:4"))), keys, NAME, certs)
    with pytest.raises(ConfigError, match="older"):
        install(old, keys, NAME, certs)


def test_certificates_carry_one_dns_name_that_follows_from_the_uri(bundle):
    names = bundle.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["bank-a.bank.test.example"]
    assert isinstance(bundle.certificate.public_key(), ec.EllipticCurvePublicKey)


def test_a_vault_does_many_as_it_does_one():
    vault = Vault(secrets.token_bytes(32))
    texts = [b"", b"phone\x1f+8613900000000", bytes(200)]
    assert vault.index_each(texts) == [vault.index(each) for each in texts]
    sealed = vault.encrypt_each(texts, b"entry")
    assert [vault.decrypt(each, b"entry") for each in sealed] == texts
    assert len({each[:12] for each in sealed}) == 3
    assert vault.decrypt_each(sealed, b"entry") == texts
    assert vault.decrypt_each([], b"entry") == []
    with pytest.raises(StorageError):
        vault.decrypt(sealed[1], b"reference")
    for bad in (b"", sealed[0][:11], sealed[0][:27], sealed[1] + b"x", None, "text of some length"):
        with pytest.raises(StorageError):
            vault.decrypt_each([sealed[0], bad], b"entry")


@pytest.mark.parametrize(
    "address",
    [
        "https://b.example:7443",
        "b.example",
        "b.example:99999",
        "b.example:0",
        "0.0.0.0:7443",
        "[::]:7443",
        "b example:7443",
        ":7443",
    ],
)
def test_addresses_that_others_cannot_reach_are_refused_before_the_ca_sees_them(keys, address):
    with pytest.raises(ConfigError, match="advertise"):
        make_request(keys, NAME, address, "host:7444")
    with pytest.raises(ConfigError, match="ledger-advertise"):
        make_request(keys, NAME, "host:7443", address)


ONE, TWO = Directory({"ICBKCNBJ": ["102*"]}), Directory({"ICBKCNBJ": ["102*"], "BKCHCNBJ": ["104*"]})


def test_a_directory_is_in_force_once_it_is_here_and_stays_until_the_next_one_is(ca, bundle, tmp_path):
    certs = tmp_path / "certs"
    certs.mkdir()
    path = certs / "members.bin"
    path.write_bytes(ca.members.signed)
    book = MemberBook(path, ca.certificate)
    kept = Institutions(book, certs)
    assert kept.current == NONE
    assert kept.missing == b""
    ca.set_institutions(ONE)
    book.offer(ca.members.signed)
    assert kept.current == NONE  # the list names it, nobody has sent it yet
    assert kept.missing == ONE.hash
    (certs / "institutions.tsv").write_bytes(TWO.encode())  # another one than the list names
    assert kept.missing == ONE.hash
    for spoiled in (TWO.encode(), ONE.encode() + b"x", b""):
        with pytest.raises(ConfigError):
            kept.put(spoiled, ONE.hash)
    kept.put(ONE.encode(), ONE.hash)
    assert kept.current.hash == ONE.hash
    assert kept.current.load().resolve("102100099996") == "ICBKCNBJ"
    ca.set_institutions(TWO)
    book.offer(ca.members.signed)  # its file was put there before
    assert (kept.missing, kept.current.hash) == (b"", TWO.hash)
    # Lists in any of the forms that this node had can still be asked, and no other.
    assert {kept.of(form(each)).hash for each in (b"", ONE.hash, TWO.hash)} == {b"", ONE.hash, TWO.hash}
    assert kept.of(form(bytes(32))) is None
    (certs / "institutions" / f"{TWO.hash.hex()}.tsv").unlink()
    again = Institutions(book, certs)  # restarted; the file put there still is the one that is named
    assert again.current.hash == TWO.hash
    assert again.read(TWO.hash) == TWO.encode()
    for unknown in (b"", b"x", bytes(32)):
        with pytest.raises(NotFound):
            again.read(unknown)
    spoiled = certs / "spoiled.tsv"
    spoiled.write_bytes(TWO.encode())
    with pytest.raises(DecodeError, match="is not the directory"):
        DirectoryFile(spoiled, ONE.hash).load()


def test_a_member_list_with_a_malformed_hash_of_institutions(ca, bundle):
    message = ca.members.message()
    message.institutions = b"short"
    signed = member_lists.sign(ca._key, message)
    with pytest.raises(ConfigError, match="institutions"):
        MemberList(signed, ca.certificate)
