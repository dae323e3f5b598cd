"""Call signatures: what two calls must share to run the same graph."""

import inspect

import pytest
import torch

from itnet_compiler.capture.signature import SignatureReader


def reader_of(function):
    return SignatureReader(inspect.signature(function))


def model(x, mask=None, *, scale=1.0, flag=False, **rest):
    raise NotImplementedError


def variadic(x, *more, k=1):
    raise NotImplementedError


X, M = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)


def test_positional_and_keyword_calls_are_one():
    reader = reader_of(model)
    first, second = reader.read((X, M), {}), reader.read((), {"mask": M, "x": X})
    assert first.signature == second.signature
    assert [id(leaf) for leaf in first.leaves] == [id(leaf) for leaf in second.leaves]


def test_arguments_equal_to_their_default_are_left_out():
    reader = reader_of(model)
    plain = reader.read((X,), {})
    assert plain.signature == reader.read((X, None), {"scale": 1.0, "flag": False}).signature
    assert plain.signature != reader.read((X,), {"flag": True}).signature
    assert plain.signature != reader.read((X,), {"scale": 1}).signature


@pytest.mark.parametrize("other", [X.double(), X[0], X.to("meta"), (X, X), {"a": X}])
def test_dtype_rank_device_and_structure_matter(other):
    reader = reader_of(model)
    assert reader.read((X,), {}).signature != reader.read((other,), {}).signature


def test_sizes_do_not_matter():
    reader = reader_of(model)
    assert reader.read((X,), {}).signature == reader.read((torch.zeros(5, 7),), {}).signature


def test_tensors_in_containers_are_leaves():
    call = reader_of(model).read(([X, {"k": M}],), {"extra": 3})
    assert [leaf.dtype for leaf in call.leaves] == [torch.float32, torch.bool] or len(call.leaves) == 2
    assert "extra=3" in call.signature.describe()


def test_variadic_arguments_stay_positional():
    call = reader_of(variadic).read((X, M, X), {"k": 2})
    assert len(call.args) == 3 and call.kwargs == {"k": 2} and len(call.leaves) == 3


def test_what_cannot_be_part_of_a_signature_is_a_type_error():
    with pytest.raises(TypeError):
        reader_of(model).read(({"k": bytearray(3)},), {})


def test_tensor_subclasses_and_objects_with_a_life_of_their_own_are_type_errors():
    class Sub(torch.Tensor):
        pass

    for value in (X.as_subclass(Sub), [X.as_subclass(Sub)], object(), {"cache": object()}):
        with pytest.raises(TypeError):
            reader_of(model).read((value,), {})


def test_which_arguments_are_one_tensor_matters():
    reader, y = reader_of(model), X.clone()
    assert reader.read((X, X), {}).signature != reader.read((X, y), {}).signature
    assert reader.read((X, X), {}).signature == reader.read((y, y), {}).signature
