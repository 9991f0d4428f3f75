"""The memory arithmetic against what is published, and the meters against allocations that are known."""

import gc

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode, is_fake

from fixtures import allocations, estimate, meters, shapes
from fixtures.models import Workshop, from_folder
from fixtures.oracles import memory
from suites.memory import test_prefill, test_requests

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", shapes.published())
def test_shape_has_the_published_parameters(name):
    shape = shapes.published()[name]
    said, within = shapes.count(shape["parameters"])

    assert abs(memory.parameter_count(shapes.config(name)) - said) <= within
    assert shape["source"]


@pytest.mark.parametrize(
    ("printed", "said", "within"), [("15.5B", 15.5e9, 5e7), ("8B", 8e9, 5e8), ("~70B", 70e9, 2.8e9), ("12", 12, 0)]
)
def test_printed_count_says_how_exact_it_is(printed, said, within):
    assert shapes.count(printed) == pytest.approx((said, within))


def test_cache_of_every_kind_of_attention():
    """Bytes of a token in bfloat16 over all layers, from the figures of the papers."""
    wide = {name: memory.kv_bytes(shapes.config(name), batch=1, slots=[1] * layers, itemsize=2) for name, layers in KV}

    assert wide == {
        "gpt3-175b": 2 * 96 * 12288 * 2,  # every head its own
        "llama-3.1-8b": 2 * 32 * 8 * 128 * 2,  # grouped
        "starcoder-15.5b": 2 * 40 * 1 * 128 * 2,  # one
        "deepseek-v3": 61 * (512 + 64) * 2,  # a latent: arXiv:2412.19437, section 4.2
    }


KV = (("gpt3-175b", 96), ("llama-3.1-8b", 32), ("starcoder-15.5b", 40), ("deepseek-v3", 61))


def test_window_and_mixed_layers_hold_what_they_see():
    assert memory.kv_slots(shapes.config("mistral-7b"), 10_000) == [4096] * 32
    assert sorted(memory.kv_slots(shapes.config("gemma-3-27b"), 10_000)) == [1024] * 52 + [10_000] * 10


@pytest.mark.parametrize(
    ("storage", "size"),
    [
        ("none", 2 * 256 * 512),
        ("nf4", 256 * 512 // 2 + 4 * 2048 + 64),
        ("nf4-double", 256 * 512 // 2 + 2048 + 4 * 8 + 64 + 1024),
        ("int8", 256 * 512 + 4 * 256),
        ("gptq-int4", 256 * 512 // 2 + 1024 * 2 + 512 + 4 * 512),
        ("gptq-int4-g64", 256 * 512 // 2 + 2048 * 2 + 1024 + 4 * 512),
        ("float8-tiles", 256 * 512 + 4 * 8),
    ],
)
def test_layer_is_stored_in_known_bytes(storage, size):
    assert memory.linear_bytes(256, 512, storage, 2) == size


@pytest.mark.parametrize("name", ["int5", "int8-g64", "nf4-g"])
def test_unknown_storage_is_no_number(name):
    with pytest.raises(KeyError):
        memory.linear_bytes(64, 64, name, 2)


def test_allocator_rounds_to_blocks_and_segments():
    assert memory.allocated_bytes([1, 512, 513]) == 512 + 512 + 1024
    assert memory.reserved_bytes([2**20, 2**20, 512]) == 2 * 2**21
    assert memory.reserved_bytes([5 * 2**20] * 5) == 2 * 20 * 2**20
    assert memory.reserved_bytes([11 * 2**20]) == 12 * 2**20


def test_allocations_are_counted_to_the_byte_and_the_same_twice():
    def run():
        big = torch.empty(3000)
        del big
        return torch.empty(500)

    found = [allocations.measured(run, CPU) for _ in range(2)]
    with allocations.allocations(CPU) as since:
        held = torch.empty(1000)
        since.begin()
        more = torch.empty(250)
        del held

    assert [(f.peak, f.kept) for f in found] == [(12_000, 0)] * 2
    assert (since.peak, since.kept) == (1000, 1000 - 4000)
    assert more.numel() == 250


@pytest.mark.parametrize(
    ("check", "passes"),
    [
        (test_prefill.test_generate_wants_the_logits_of_one_position, 0),
        (test_prefill.test_logits_of_a_whole_prompt_take_their_own_bytes, 1),
        (test_requests.test_requests_keep_no_graph, 0),
    ],
)
def test_a_check_that_raises_leaves_no_hook_on_the_model_that_others_share(check, passes, tmp_path):
    model = from_folder(Workshop(0, tmp_path).checkpoint("llama-gqa"), torch.float32, CPU)
    head, calls = model.get_output_embeddings(), iter([*[None] * passes, RuntimeError("out of luck")])

    def broken(module, args):
        if error := next(calls):
            raise error

    with head.register_forward_pre_hook(broken), pytest.raises(RuntimeError, match="out of luck"):
        check(None, torch.float32, CPU, model, lambda *shape: torch.ones(shape, dtype=torch.long), None)

    assert not head._forward_pre_hooks
    assert not head._forward_hooks


def test_tensor_that_hides_in_a_closure_is_alive():
    with allocations.survivors() as added:
        hidden = [torch.empty(1000)]

        assert added() == hidden[0].nbytes


def test_tensor_from_before_that_holds_something_new_is_seen():
    weight = torch.empty(1000)
    with allocations.survivors() as added:
        weight.data = torch.empty(2000)

        assert added() == weight.nbytes


def test_new_view_of_what_was_there_holds_nothing_more():
    weight = torch.empty(1000)
    with allocations.survivors() as added:
        view = weight[1:]

        assert added() == 0
    assert len(view) == 999


def test_garbage_is_not_taken_for_what_was_added():
    loop = [torch.empty(1000)]
    loop.append(loop)
    with allocations.survivors() as added:
        del loop
        gc.collect()

        hidden = [torch.empty(1000) for _ in range(20)]  # one of them where the garbage was, had it been freed

        assert added() == sum(t.nbytes for t in hidden)


def test_slope_and_intercept_are_told_apart():
    token, position, once = allocations.fitted(lambda b, n: 70 * b * n + 9 * n + 5 * b + 1000, (1, 2), (10, 20, 30))

    assert (token, position, once) == pytest.approx((70, 9, 1000))
    assert allocations.exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2)


def test_estimate_adds_up_and_says_what_it_leaves_out(capsys):
    estimate.main(["starcoder-15.5b", "--quantizer", "nf4-double", "--context", "100"])

    printed = capsys.readouterr().out
    assert "15,517,456,384 parameters" in printed
    assert "Not counted: the CUDA context" in printed


@pytest.mark.parametrize("arguments", [["starcoder-15.5b", "--quantizer", "int5"], ["no/such/folder/here"]])
def test_estimate_refuses_what_it_does_not_know(arguments, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SystemExit):
        estimate.main(arguments)
    assert "error:" in capsys.readouterr().err


def test_what_a_compiler_imagines_holds_nothing():
    with allocations.survivors() as added, FakeTensorMode():
        imagined = torch.empty(1000)

        assert added() == 0
    assert is_fake(imagined)


def test_a_product_needs_the_same_on_any_count_of_threads():
    weight, rows = torch.randn(512, 64).bfloat16(), torch.randn(256, 64).bfloat16()
    kept, peaks = torch.get_num_threads(), set()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        peaks.add(allocations.measured(lambda: rows @ weight.mT, CPU).peak)
        assert torch.get_num_threads() == threads
    torch.set_num_threads(kept)

    assert len(peaks) == 1


@pytest.mark.parametrize(("firsts", "seconds", "slow"), [(1.0, 0.1, 9), (0.7, 0.1, 0), (0.004, 0.0, 0), (0.4, 0.0, 9)])
def test_a_clock_that_ticks_makes_nothing_slow(firsts, seconds, slow):
    times = torch.tensor([[[firsts], [seconds]]] * 9 + [[[0.004], [0.004]]])

    assert meters.slow_at_first(times, 8) == [slow]
