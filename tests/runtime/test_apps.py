"""The ready-made ServerApp on its way out."""

import signal
import threading

import pytest

from flsparse.runtime.apps import saves_before_exit


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
