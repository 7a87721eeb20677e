from dataclasses import replace

import pytest
from transformers import LlamaConfig

from dualform.models.cost.memory import MemoryEstimate, layer_bytes, memory_estimate, quantized_bytes, weight_bytes
from dualform.models.cost.shape import ModelShape, shape_of_config
from tests.fixed_machine import GIB

# The family's defaults are those of its model of seven billion weights.
SEVEN_BILLION = shape_of_config(LlamaConfig())
REST = {"activations": GIB}


def fit(
    shape: ModelShape = SEVEN_BILLION, *, ram: int, gpu: int = 0, dtype: str = "float32", divided: bool = False
) -> MemoryEstimate:
    memory = {"Python and libraries": GIB // 2, "weights": weight_bytes(shape, dtype), **REST}
    device = "cuda" if gpu else "cpu"
    return memory_estimate(shape, memory, dtype=dtype, device=device, ram=ram, gpu=gpu, trains=True, divided=divided)


def fits_by_option(estimate: MemoryEstimate) -> dict[str, bool]:
    return {option.how: option.fits for option in estimate.options}


def test_seven_billion_weights_are_counted():
    assert SEVEN_BILLION.parameters == pytest.approx(6.74e9, rel=0.01)


def test_no_options_are_given_if_the_run_fits():
    estimate = fit(ram=64 * GIB)
    assert estimate.fits
    assert estimate.options == ()


def test_half_precision_is_proposed_where_it_fits():
    estimate = fit(ram=20 * GIB)
    assert not estimate.fits
    assert fits_by_option(estimate)["--dtype bfloat16"]
    half = next(option for option in estimate.options if option.how == "--dtype bfloat16")
    assert half.bytes == weight_bytes(SEVEN_BILLION, "bfloat16") + GIB // 2 + GIB // 2
    assert "rounded away" in half.note


def test_where_half_precision_does_not_fit_either_fewer_bits_and_disk_do():
    fits = fits_by_option(fit(ram=10 * GIB))
    assert not fits["--dtype bfloat16"]
    assert fits["--quantize 4bit"]
    assert fits["--device-map auto --offload-folder FOLDER"]


def test_no_option_fits_on_a_machine_that_is_too_small():
    assert not any(fits_by_option(fit(ram=GIB)).values())


def test_a_gpu_too_small_may_be_helped_by_main_memory():
    estimate = fit(ram=64 * GIB, gpu=16 * GIB)
    assert estimate.where == "GPU memory"
    assert fits_by_option(estimate)["--device cpu"]
    assert fits_by_option(estimate)["--device-map auto"]
    assert not fits_by_option(fit(ram=8 * GIB, gpu=16 * GIB))["--device-map auto"]


def test_what_python_takes_does_not_lie_on_the_gpu():
    assert fit(ram=64 * GIB, gpu=80 * GIB).needed == weight_bytes(SEVEN_BILLION, "float32") + GIB


def test_no_options_are_given_for_a_model_that_is_already_split():
    assert fit(ram=GIB, divided=True).options == ()


def test_unknown_memory_is_no_reason_to_complain():
    assert fit(ram=0).fits


def test_fewer_bits_take_fewer_bytes_and_leave_embeddings_as_they_are():
    whole = weight_bytes(SEVEN_BILLION, "float32")
    eight, four = (quantized_bytes(SEVEN_BILLION, bits, "float32") for bits in ("8bit", "4bit"))
    assert four < eight < whole / 3
    assert four > weight_bytes(replace(SEVEN_BILLION, parameters=2 * 4096 * 32000), "float32")


def test_a_layer_is_a_part_of_all_linears():
    assert layer_bytes(SEVEN_BILLION, "float32") * 32 == SEVEN_BILLION.linears * 4


def test_a_fit_is_plain_data():
    data = fit(ram=10 * GIB).as_dict()
    assert data["fits"] is False
    assert {"how", "bytes", "fits", "note"} == set(data["options"][0])
