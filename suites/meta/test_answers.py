"""Who makes a call that may end badly: a thread that outlives it, and that is not asked again after a refusal."""

import multiprocessing
import threading

import pytest
import torch

from fixtures.answers import REFUSED, answer


def asked(call=lambda: None):
    """The thread that made a call, and what came of it."""
    threads = []

    def made():
        threads.append(threading.current_thread())
        call()
        return torch.ones(2, 3)

    came, _ = answer(made)
    return threads[0], came


def refuse():
    raise ValueError("no such shape")


def test_one_thread_answers_call_after_call_and_does_not_end():
    first, came = asked()
    second, _ = asked()

    assert came == "answered with shape [2, 3]"
    assert first is second
    assert first.is_alive()
    assert first.daemon


def test_a_thread_that_refused_is_not_asked_again_and_does_not_end():
    refused, came = asked(refuse)
    other, again = asked()

    assert (came, again) == (REFUSED, "answered with shape [2, 3]")
    assert refused is not other
    assert refused.is_alive()


def test_what_it_was_refused_with_is_told():
    assert answer(lambda: refuse()) == (REFUSED, "ValueError: no such shape")


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of Python 3.12, of threads beside it
def test_a_fork_asks_a_thread_of_its_own():
    asked()
    found = multiprocessing.get_context("fork").Queue()
    forked = multiprocessing.get_context("fork").Process(target=lambda: found.put(asked()[1]))
    forked.start()

    assert found.get(timeout=60) == "answered with shape [2, 3]"
    forked.join()
