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
