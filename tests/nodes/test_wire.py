"""The command line's channel to its node."""

import grpc
import pytest
from lianfang.v1 import admin_pb2, admin_pb2_grpc

from nodes.services import wire


def test_a_token_that_cannot_be_read_is_an_error_of_the_call(tmp_path):
    """Who waits for a node that has not begun catches what gRPC raises."""
    with wire.admin_channel(tmp_path / "admin.sock", (tmp_path / "process.token").read_text) as channel:
        node = admin_pb2_grpc.AdminStub(channel)
        for call in (
            lambda: node.Status(admin_pb2.StatusRequest()),
            lambda: list(node.Query(admin_pb2.QueryRequest())),
            lambda: list(node.Import(iter([admin_pb2.ImportRequest()]))),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                call()
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "process.token" in caught.value.details()
            assert wire.reason_of(caught.value) == "UNAVAILABLE"
