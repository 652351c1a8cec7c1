"""What benchmarks.program_account counts, on programs small enough to count by hand."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks import program_account, step_case
from bertjax.config import ConfigError
from bertjax.parallel.sharding import make_mesh

# 8 tokens (4 rows x 2), 16 wide. The tuple of the product's room to work, 999 bytes, is no result.
PROGRAM = """\
HloModule jit_step, is_scheduled=true

%fused_transpose (p.0: f32[4,2,16]) -> f32[2,16,4] {
  %p.0 = f32[4,2,16]{2,1,0} parameter(0)
  %small = f32[2,4]{1,0} constant({...})
  %flipped = f32[4,2]{1,0} transpose(%small), dimensions={1,0}
  %ones = f32[1,4,2,16]{3,2,1,0} bitcast(%p.0)
  %same = f32[4,1,2,16]{3,2,1,0} transpose(%ones), dimensions={1,0,2,3}
  ROOT %moved = f32[2,16,4]{2,1,0} transpose(%p.0), dimensions={1,2,0}, \
metadata={op_name="jit(step)/transpose(jvp(B))/bert/encoder/EncoderLayer/mlp_layer_norm/mul"}
}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%fused_reduce (p.1: f32[2,16,4]) -> f32[16] {
  %p.1 = f32[2,16,4]{2,1,0} parameter(0)
  %zero = f32[] constant(0)
  ROOT %reduced = f32[16]{0} reduce(%p.1, %zero), dimensions={0,2}, to_apply=%add
}

%fused_product (p.2: bf16[8,16], p.3: bf16[16,32]) -> bf16[8,32] {
  %p.2 = bf16[8,16]{1,0} parameter(0)
  %p.3 = bf16[16,32]{1,0} parameter(1)
  ROOT %dot = bf16[8,32]{1,0} dot(%p.2, %p.3), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

ENTRY %main (x: f32[4,2,16], y: bf16[8,16], w: bf16[16,32]) -> (f32[16], bf16[8,32]) {
  %x = f32[4,2,16]{2,1,0} parameter(0)
  %y = bf16[8,16]{1,0} parameter(1)
  %w = bf16[16,32]{1,0} parameter(2)
  %turned = f32[2,16,4]{2,1,0} fusion(%x), kind=kInput, calls=%fused_transpose
  %summed = f32[16]{0} fusion(%turned), kind=kInput, calls=%fused_reduce, \
metadata={op_name="jit(step)/optimizer/reduce_sum"}
  %gemm = bf16[8,32]{1,0} fusion(%y, %w), kind=kCustom, calls=%fused_product, \
metadata={op_name="jit(step)/jvp(B)/bert/encoder/EncoderLayer/mlp/output/dot_general"}
  %cublas = (bf16[8,32]{1,0}, s8[999]{0}) custom-call(%y, %w), \
custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":\
{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
  %result = bf16[8,32]{1,0} get-tuple-element(%cublas), index=0
  %own = bf16[8,32]{1,0} custom-call(%gemm, %gemm), custom_call_target="__gpu$xla.gpu.triton"
  ROOT %out = (f32[16], bf16[8,32]) tuple(%summed, %result)
}
"""
BYTES = {
    "turned": (128 + 128) * 4,
    "summed": (128 + 16) * 4,
    "gemm": (128 + 512 + 256) * 2,
    "cublas": (128 + 512 + 256) * 2,
    "own": (256 + 256) * 2,  # reads two parts of one array
}


@pytest.fixture(scope="module")
def kernels() -> dict[str, program_account.Kernel]:
    found = program_account.account(PROGRAM, tokens=8, width=16)
    return {kernel.name: kernel for kernel in found}


def test_each_kernel_counts_once_with_what_it_reads_and_writes(kernels):
    assert {name: kernel.num_bytes for name, kernel in kernels.items()} == BYTES
    assert {name: kernel.times for name, kernel in kernels.items()} == dict.fromkeys(BYTES, 1)


def test_arithmetic_is_that_of_products_in_fusions_and_of_libraries(kernels):
    flops = {name: kernel.flops for name, kernel in kernels.items() if kernel.flops}
    assert flops == dict.fromkeys(("gemm", "cublas"), 2 * 8 * 32 * 16)


def test_a_transpose_counts_where_elements_of_an_activation_move(kernels):
    """Not one of ids, nor one over a dimension of 1."""
    transposes = {name: kernel.transposes for name, kernel in kernels.items()}
    assert transposes == {**dict.fromkeys(BYTES, 0), "turned": 1}
    found = program_account.account(PROGRAM, tokens=8, width=17)
    assert not any(kernel.transposes for kernel in found)  # fewer elements than an activation


def test_kinds_parts_and_directions(kernels):
    assert {name: kernel.kind for name, kernel in kernels.items()} == {
        "turned": "transposes",
        "summed": "reductions",
        "gemm": "products",
        "cublas": "products",
        "own": "own kernels",
    }
    # A fusion without a name of its own has that of its last instruction.
    assert kernels["turned"].part == "layers: LayerNorm"
    assert kernels["turned"].direction == "backward"
    assert kernels["gemm"].part == "layers: feed-forward products"
    assert kernels["gemm"].direction == "forward"
    assert kernels["own"].part == "unnamed"


def test_totals_and_tables(kernels):
    sums = program_account.totals(kernels.values())
    assert sums == {
        "kernels": 5,
        "gigabytes": round(sum(BYTES.values()) / 1e9, 2),
        "teraflop": 0.0,
        "activation_transposes": 1,
    }
    groups = program_account.grouped(kernels.values(), program_account.by_kind)
    assert {name: group["kernels"] for name, group in groups.items()} == {
        "products": 2,
        "own kernels": 1,
        "transposes": 1,
        "reductions": 1,
    }
    assert len(program_account.table(groups).splitlines()) == 1 + len(groups)


def test_a_loop_counts_as_often_as_it_runs():
    def step(x, kernels):
        return jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, kernels)[0]

    shapes = (jax.ShapeDtypeStruct((64, 256), jnp.float32), jnp.zeros((5, 256, 256), jnp.float32))
    text = jax.jit(step).lower(*shapes).compile().as_text()
    flops = sum(x.times * x.flops for x in program_account.account(text, tokens=64, width=256))
    assert flops == 5 * 2 * 64 * 256 * 256


def test_a_case_says_model_rows_and_kind():
    config = step_case.step_config("minilm:384:32:span", ["attention=pallas"], backend="gpu")
    (phase,) = config.resolved_phases()
    assert (phase.max_length, phase.global_batch_size, phase.packing_depth) == (384, 32, 1)
    assert (config.model.head, config.model.dtype, config.model.attention) == (
        "span",
        "bfloat16",
        "pallas",
    )
    packed = step_case.step_config("large:512:64:packed", backend="cpu")
    assert packed.resolved_phases()[0].packing_depth > 1
    assert packed.model.dtype == "float32"
    with pytest.raises(ConfigError, match="expected model:length:rows"):
        step_case.step_config("base:128")
    with pytest.raises(ConfigError, match="attentoin does not exist; did you mean 'attention'"):
        step_case.step_config("base:128:8", ["attentoin=xla"])


@pytest.mark.slow
@pytest.mark.parametrize("case", ["tiny:32:4", "tiny:64:4:packed", "tiny:32:4:span"])
def test_the_rows_of_a_case_are_those_that_its_step_takes(case):
    config = step_case.step_config(case)
    _, shapes = step_case.objective_and_batch(config, make_mesh(config.mesh, jax.devices()[:1]))
    rows = step_case.make_rows(config)
    for name, x in shapes.items():
        assert (rows[name].shape, rows[name].dtype) == (x.shape, x.dtype), name
    if config.model.head == "span":
        assert (rows["attention_mask"].sum(1) > rows["start_positions"]).all()
