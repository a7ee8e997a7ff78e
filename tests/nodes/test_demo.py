"""What the demonstration and the tests start networks with."""

from nodes.demo.network import free_port


def test_a_port_is_given_once():
    """By chance alone, two of so many would be one more often than not."""
    ports = [free_port() for _ in range(256)]
    assert len(set(ports)) == len(ports)
