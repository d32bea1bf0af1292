"""The ready-made ServerApp on its way out, and the limits of a device's owner."""

import signal
import threading

import pytest

from flsparse.clients import Limits
from flsparse.runtime.apps import owner_limits, saves_before_exit
from flsparse.runtime.owner import TELLS, tells_class_counts


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_saves_before_flowers_handler_ends_the_process(number: signal.Signals) -> None:
    seen: list[object] = []
    before = signal.signal(number, lambda received, frame: seen.append(received))
    try:
        with saves_before_exit():
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(number)
            signal.raise_signal(number)  # an impatient second one
            seen.append("saved")
    finally:
        signal.signal(number, before)
    assert seen == ["saved", number]


def test_without_a_signal_and_beside_the_main_thread_nothing_changes() -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    inside: list[object] = []

    def run() -> None:
        with saves_before_exit():
            inside.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    with saves_before_exit():
        assert signal.getsignal(signal.SIGTERM) != handlers[1]
    assert inside == handlers[1:]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_an_owner_allows_class_counts_to_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TELLS, raising=False)
    assert not tells_class_counts()
    monkeypatch.setenv(TELLS, "1")
    assert tells_class_counts()
    monkeypatch.setenv(TELLS, "yes")
    with pytest.raises(ValueError, match="FLSPARSE_TELL_CLASS_COUNTS='yes' is neither 1"):
        tells_class_counts()


def test_an_owners_limits_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLSPARSE_MAX_PAYLOAD_BYTES", "1000")
    assert owner_limits() == Limits(max_payload_bytes=1000)
    for text in ("10MB", "-1", "", "1.5"):
        monkeypatch.setenv("FLSPARSE_MAX_LOCAL_EPOCHS", text)
        with pytest.raises(ValueError, match=f"FLSPARSE_MAX_LOCAL_EPOCHS='{text}' is not a whole number from 0"):
            owner_limits()
    with pytest.raises(ValueError, match="max_state_bytes=-1 must be at least 0"):
        Limits(max_state_bytes=-1)
