import json

import pytest
from golden_losses import FILE, STEPS, losses, machine, networks

RECORDED = json.loads(FILE.read_text())


def test_every_debug_network_is_recorded():
    assert RECORDED["losses"].keys() == STEPS.keys()
    assert all(of_networks.keys() == set(networks()) for of_networks in RECORDED["losses"].values())


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(name, marks=[pytest.mark.slow] if "tp" in name or "conv" in name else [])
        for name in networks()
    ],
)
def test_fifty_steps_have_the_recorded_losses(model):
    measured = losses(model, "blended")
    assert len(measured) == STEPS["blended"] and sum(measured[-10:]) < sum(measured[:10])
    if machine() == RECORDED["machine"]:
        assert measured == RECORDED["losses"]["blended"][model]


@pytest.mark.parametrize("model", networks())
def test_steps_have_the_recorded_losses_on_any_machine(model):
    recorded, measured = RECORDED["losses"]["plain"][model], losses(model, "plain")
    assert len(measured) == STEPS["plain"]
    assert measured == pytest.approx(recorded, rel=0 if machine() == RECORDED["machine"] else 1e-3)
