import copy
import pickle

import pytest
import torch

from snnkernels.nn import encode


@pytest.fixture
def images():
    return torch.linspace(0, 1, 24).view(2, 3, 2, 2)


def test_direct_shows_the_values_without_a_copy(images):
    x = encode.Direct(5)(images)
    assert x.shape == (5, 2, 3, 2, 2)
    assert x.stride(0) == 0 and x.data_ptr() == images.data_ptr()


@pytest.mark.parametrize("name", ["signed_poisson", "bernoulli"])
def test_equal_seeds_give_equal_spikes(name, images):
    one, two = (encode.create(name, steps=20, seed=3) for _ in range(2))
    first, second = one(images), one(images)
    assert torch.equal(first, two(images))
    assert not torch.equal(first, second)  # the generator goes on
    one.reset()
    assert torch.equal(one(images), first)
    assert not torch.equal(encode.create(name, steps=20, seed=4)(images), first)
    given = torch.Generator().manual_seed(3)
    assert torch.equal(encode.create(name, steps=20)(images, given), first)
    torch.manual_seed(0)
    kept = torch.get_rng_state()
    one(images)
    assert torch.equal(torch.get_rng_state(), kept)  # a seeded code leaves the global one alone


def test_a_used_code_is_copied_and_pickled(images):
    code = encode.Bernoulli(4, seed=1)
    first = code(images)
    assert torch.equal(copy.deepcopy(code)(images), first)
    assert torch.equal(pickle.loads(pickle.dumps(code))(images), first)


@pytest.mark.parametrize("name", ["signed_poisson", "bernoulli"])
def test_a_code_goes_on_from_a_kept_position(name, images):
    code = encode.create(name, steps=20, seed=3)
    code(images)
    kept = code.get_rng_state()
    expected = [code(images) for _ in range(2)]
    other = encode.create(name, steps=20, seed=3)
    other.set_rng_state(kept)
    for s in expected:
        assert torch.equal(other(images), s)
    unseeded = encode.create(name, steps=20)
    unseeded(images)
    assert unseeded.get_rng_state() == {}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_look_at_another_device_repeats_no_numbers(images):
    code, whole = (encode.Bernoulli(20, seed=3) for _ in range(2))
    expected = [whole(images) for _ in range(2)]
    first = code(images)
    assert not torch.equal(code(images.cuda()).cpu(), code(images.cuda()).cpu())
    assert torch.equal(first, expected[0]) and torch.equal(code(images), expected[1])


class Coded(torch.utils.data.Dataset):
    """Equal values, coded where they are loaded."""

    def __init__(self, seed):
        self.code = encode.Bernoulli(64, seed=seed)

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return self.code(torch.full((1,), 0.5)).flatten()


def epochs(seed, global_seed=0, persistent=False):
    torch.manual_seed(global_seed)
    data = Coded(seed)
    data.code(torch.full((1,), 0.5))  # used before, in this process
    loader = torch.utils.data.DataLoader(
        data, num_workers=2, multiprocessing_context="fork", persistent_workers=persistent
    )
    return torch.cat([torch.cat(list(loader)) for _ in range(2)])


@pytest.mark.parametrize("persistent", [False, True])
def test_seeded_codes_differ_between_workers_and_epochs(persistent):
    seen = epochs(1, persistent=persistent)
    assert len(seen) == len(seen.unique(dim=0)) == 8  # no sample has another one's numbers
    assert torch.equal(epochs(1, persistent=persistent), seen)
    both = torch.cat([seen, epochs(2, persistent=persistent)])
    assert len(both.unique(dim=0)) == 16
    assert not torch.equal(epochs(1, global_seed=1, persistent=persistent), seen)


def test_signed_poisson_has_the_signs_and_rates_of_the_values():
    x = torch.tensor([[-2.0, -1.0, 0.0, 0.5, 2.0, 3.0]])
    s = encode.SignedPoisson(4000, seed=0)(x)
    assert set(s.unique().tolist()) == {-1.0, 0.0, 1.0}
    torch.testing.assert_close(
        s.mean(0), torch.tensor([[-1.0, -0.5, 0.0, 0.25, 1.0, 1.0]]), atol=0.04, rtol=0
    )
    assert s[:, 0, 2].abs().sum() == 0


def test_bernoulli_has_the_rates_of_the_values(images):
    s = encode.Bernoulli(4000, seed=0)(images)
    torch.testing.assert_close(s.mean(0), images, atol=0.04, rtol=0)


def test_count_spikes_from_the_start_until_the_count_is_used_up():
    s = encode.Count(4)(torch.tensor([[0.0, 0.25, 0.6, 1.0]]))
    assert s[:, 0].T.tolist() == [[0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]]


def test_latency_fires_once_and_earlier_for_brighter():
    s = encode.Latency(8, period=5)(torch.tensor([[0.0, 0.25, 0.5, 1.0]]))
    assert s.sum(0).tolist() == [[1, 1, 1, 1]]
    assert s.argmax(0).tolist() == [[4, 3, 2, 0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", list(encode.CODES))
def test_dtype_is_kept(name, dtype, images):
    x = encode.create(name, steps=30)(images.to(dtype))
    assert x.dtype == dtype and x.shape == (30, *images.shape)


@pytest.mark.parametrize("name", ["bernoulli", "count", "latency"])
@pytest.mark.parametrize("bad", [-0.1, 1.5, float("nan")])
def test_values_outside_the_unit_interval_are_refused(name, bad, images):
    images[0, 0, 0, 0] = bad
    with pytest.raises(ValueError, match=r"x must lie in \[0, 1\]"):
        encode.create(name, steps=30)(images)


@pytest.mark.parametrize(
    "make, told",
    [
        (lambda: encode.Direct(0), "steps must be a whole number >= 1; got 0"),
        (lambda: encode.Bernoulli(3, seed=0.5), "seed must be a whole number or None; got 0.5"),
        (
            lambda: encode.Latency(10, period=11),
            "period must be a whole number from 1 to steps = 10",
        ),
        (lambda: encode.SignedPoisson(3, rescale=0), "rescale must be a number > 0; got 0"),
        (lambda: encode.create("rate", steps=3), "name must be one of direct, .*; got 'rate'"),
    ],
)
def test_errors_name_argument_value_and_choices(make, told):
    with pytest.raises((TypeError, ValueError), match=told):
        make()
