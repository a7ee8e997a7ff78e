"""The simulation on Flower's engine: real Ray workers, the deployed applications, the real aggregation service."""

from federation.simulate import config, engines, worlds

SMALL = {"rows": 120, "fraud_rate": 0.1, "seeds": [3], "settings": {"trees": 2, "depth": 2, "bins": 8}}


def federated(**values):
    chosen = config.load(None, {**SMALL, **values})
    return engines.run(chosen, worlds.make(chosen, 3), 3, lambda _what: None)


def test_ten_banks_on_two_cores_with_ray_give_the_inline_engines_model(monkeypatch):
    """Banks that wait for each other's sums share clients, so that as many clients as cores are enough.

    The address of a cluster that is gone, as a start that failed leaves one, is of no concern to the engine.
    """
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    inline, _ = federated(banks=10)
    model, costs = federated(banks=10, engine="ray")
    assert model.to_bytes() == inline.to_bytes()
    assert len(costs) == 10
    assert all(cost.sums and cost.sent for cost in costs.values())
