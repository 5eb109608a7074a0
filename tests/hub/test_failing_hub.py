"""A Hub that fails or changes between requests; `python -m tests.reliability hub` tries all of them."""

import pytest
from hub_server import Cut, Refusal

from hf_vit_seg import load
from hf_vit_seg.errors import HfVitSegError
from tests.reliability.hub import OLD_SIZE, FailingHub, Try, section, try_change, try_load, try_push


@pytest.fixture(scope="module")
def failing(hub_server, tmp_path_factory) -> FailingHub:
    return FailingHub(hub_server, tmp_path_factory.mktemp("failing"))


@pytest.mark.parametrize("fault", [Cut(), Refusal(503, "", "unavailable")])
@pytest.mark.parametrize("request_number", [0, 2, 4, 6, 8])
def test_load_from_a_hub_that_stops_answering(failing, fault, request_number):
    assert try_load(failing, fault, request_number, always=True) in ("done", "refused")


@pytest.mark.parametrize("request_number", [1, 2, 5, 6, 8])
def test_load_of_a_repository_that_changes(failing, request_number):
    """Weights and image processor are of one revision."""
    assert try_change(failing, request_number) == "done"


@pytest.mark.parametrize("request_number", [1, 5, 7])
def test_push_to_a_hub_that_cuts_the_connection(failing, request_number):
    assert try_push(failing, Cut(), request_number, always=False) in ("done", "refused")


def test_missing_processor_is_not_an_unreachable_one(failing):
    """The settings of a known repository cannot be downloaded: the model is not loaded without them."""
    with failing.connected():
        failing.publish(0)
        assert load("me/model")[1].size["height"] == OLD_SIZE
    with failing.connected():
        failing.publish(0)

        def fault(method: str, path: str) -> None:
            if "processor" in path:
                raise Refusal(503, "", "unavailable")

        failing.hub.fault = fault
        with pytest.raises(HfVitSegError):
            load("me/model")
        files = failing.hub.repo("me/model").files()
        for name in [name for name in files if "processor_config" in name]:
            del files[name]
        failing.heal()
        assert load("me/model")[1] is None
        failing.hub.fault = fault
        assert load("me/model")[1] is None  # the Hub said so before


def test_section_counts_outcomes():
    tries = [Try("load", "429", number, outcome) for number, outcome in enumerate(("done", "refused", "other"))]
    assert "| load | 429 | 3 | 1 | 1 | 1 |" in section(tries).splitlines()
