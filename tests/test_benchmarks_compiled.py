"""The benchmark for chips that are not there: what it counts in a program, and what it asks for."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from benchmarks import __main__ as command_line
from benchmarks import cases, trees
from benchmarks.compiled import chips, floors, jobs, page, program, runs, stored, ways
from benchmarks.compiled.jobs import Job
from gradx.lowering import policy


def entry(*lines: str) -> str:
    body = "\n".join(f"  {line}" for line in lines)
    return f"HloModule jit_step\n\nENTRY %main.1 (p.1: f32[8]) -> f32[8] {{\n{body}\n}}\n"


# ---------------------------------------------------------------- what is counted


def test_a_fusion_moves_its_operands_and_its_results() -> None:
    made = program.cost(
        entry(
            "%g.1 = f32[256]{0} parameter(0)",
            "%mu.1 = f32[256]{0} parameter(1)",
            "%nu.1 = f32[256]{0} parameter(2)",
            "%p.1 = f32[256]{0} parameter(3)",
            "%rate.1 = f32[] constant(0.001)",
            "%adamw = (f32[256]{0}, f32[256]{0}, f32[256]{0}) fusion(%g.1, %mu.1, %nu.1, %p.1, "
            '%rate.1), kind=kLoop, calls=%fused, metadata={op_name="jit(step)/mul(%a)"}',
            "%new.1 = f32[256]{0} get-tuple-element(%adamw), index=0",
            "ROOT %t = (f32[256]{0}) tuple(%new.1)",
        )
    )
    assert made.moved == 7 * 4 * 256 + 4
    assert made.kernels == 1


def test_of_an_array_that_a_fusion_slices_the_slices_move() -> None:
    text = textwrap.dedent("""\
        HloModule jit_step

        %fused.1 (a: f32[10,64], i: s32[]) -> f32[64] {
          %a = f32[10,64]{1,0} parameter(0)
          %i = s32[] parameter(1)
          %named = f32[10,64]{1,0} bitcast(%a)
          %row = f32[1,64]{1,0} dynamic-slice(%named, %i, %i), dynamic_slice_sizes={1,64}
          ROOT %flat = f32[64]{0} bitcast(%row)
        }

        %fused.2 (new: f32[1,64], a: f32[10,64], i: s32[]) -> f32[10,64] {
          %a = f32[10,64]{1,0} parameter(1)
          %new = f32[1,64]{1,0} parameter(0)
          %i = s32[] parameter(2)
          ROOT %set = f32[10,64]{1,0} dynamic-update-slice(%a, %new, %i, %i)
        }

        %fused.3 (a: f32[10,64], i: s32[]) -> (f32[1,64], f32[10,64]) {
          %a = f32[10,64]{1,0} parameter(0)
          %i = s32[] parameter(1)
          %row = f32[1,64]{1,0} dynamic-slice(%a, %i, %i), dynamic_slice_sizes={1,64}
          %twice = f32[10,64]{1,0} add(%a, %a)
          ROOT %both = (f32[1,64]{1,0}, f32[10,64]{1,0}) tuple(%row, %twice)
        }

        ENTRY %main (p: f32[10,64], i: s32[]) -> f32[10,64] {
          %p = f32[10,64]{1,0} parameter(0)
          %i = s32[] constant(1)
          %row = f32[64]{0} fusion(%p, %i), kind=kLoop, calls=%fused.1
          CHANGED
        }
        """)
    row, whole = 4 * 64, 4 * 640
    changed = "%set = f32[10,64]{1,0} fusion(%row, %p, %i), kind=kLoop, calls=%fused.2"
    assert program.cost(text.replace("CHANGED", changed)).moved == 2 * row + 2 * row + 8
    changed = "%both = (f32[1,64], f32[10,64]) fusion(%p, %i), kind=kLoop, calls=%fused.3"
    assert program.cost(text.replace("CHANGED", changed)).moved == 2 * row + 2 * whole + row + 8


def test_what_lies_on_the_chip_moves_nothing() -> None:
    made = program.cost(
        entry(
            "%p.1 = bf16[128,8]{1,0:T(8,128)(2,1)} parameter(0)",
            "%near = bf16[128,8]{1,0:T(8,128)(2,1)S(1)} fusion(%p.1), kind=kLoop, calls=%f",
            "ROOT %far = bf16[128,8]{1,0:T(8,128)(2,1)} fusion(%near), kind=kLoop, calls=%f",
        )
    )
    assert made.moved == 2 * (2 * 128 * 8)


def test_what_is_begun_moves_as_much_as_its_part_of_the_source() -> None:
    made = program.cost(
        entry(
            "%p.1 = f32[64,8]{1,0} parameter(0)",
            "%slice = ((f32[64,8]{1,0}), f32[16,8]{1,0:S(1)}, s32[]) slice-start(%p.1), slice={}",
            "%part = f32[16,8]{1,0:S(1)} slice-done(%slice)",
            "%copy = (f32[16,8]{1,0}, f32[16,8]{1,0:S(1)}, u32[]) copy-start(%part)",
            "ROOT %end = f32[16,8]{1,0} copy-done(%copy)",
        )
    )
    assert made.moved == 2 * (4 * 16 * 8)
    assert made.kernels == 2


def test_a_collective_that_is_begun_reads_its_operands_once() -> None:
    made = program.cost(
        entry(
            "%p.1 = f32[8,4]{1,0} parameter(0)",
            "%begun = (f32[8,4]{1,0}, f32[32,4]{1,0}) all-gather-start(%p.1), dimensions={0}",
            "%all = f32[32,4]{1,0} all-gather-done(%begun)",
            "%sum = f32[8,4]{1,0} all-reduce-start(%p.1), to_apply=%add",
            "ROOT %end = f32[8,4]{1,0} all-reduce-done(%sum)",
        )
    )
    assert made.moved == 4 * (8 * 4 + 32 * 4) + 4 * (8 * 4 + 8 * 4)
    assert made.kernels == 2


@pytest.mark.parametrize(
    ("kind", "size"),
    [("f32[3,5]", 60), ("pred[8]", 8), ("s4[8]", 4), ("token[]", 0), ("f8e4m3fn[2]", 2)],
)
def test_sizes(kind: str, size: int) -> None:
    assert program.size(kind) == size
    assert program.size(f"({kind}, ({kind}))") == 2 * size


def test_collectives_count_what_they_give_and_once() -> None:
    text = textwrap.dedent("""\
        HloModule jit_step

        %fused.1 (param: bf16[4,8]) -> bf16[64,8] {
          %gather.1 = bf16[64,8]{1,0} all-gather(%param), channel_id=3, dimensions={0}
        }

        %fused.2 (param: bf16[4,8]) -> bf16[64,8] {
          %gather.2 = bf16[64,8]{1,0:S(1)} all-gather(%param), channel_id=3, dimensions={0}
        }

        ENTRY %main (p: f32[4,8]) -> f32[4,8] {
          %p = f32[4,8]{1,0} parameter(0)
          %both = ((f32[4,8], f32[4]), (f32[32,8], f32[32])) all-gather-start(%p, %p)
          %all = (f32[32,8]{1,0}, f32[32]{0}) all-gather-done(%both)
          %sum-start = f32[2,8]{1,0} all-reduce-start(%p), channel_id=2
          %sum = f32[2,8]{1,0} all-reduce-done(%sum-start)
          %begun = ((f32[4,8]{1,0}), f32[4,8]{1,0}) all-to-all-start(%p), channel_id=1
          ROOT %end = f32[4,8]{1,0} all-to-all-done(%begun)
        }
        """)
    assert program.cost(text).collectives == {
        "all-gather": 2 * 64 * 8 + 4 * (32 * 8 + 32),
        "all-reduce": 4 * 2 * 8,
        "all-to-all": 4 * 4 * 8,
    }


def test_products_count_fused_or_in_a_library() -> None:
    text = textwrap.dedent("""\
        %gemm_fusion (a: f32[2,16,8], b: f32[2,8,4]) -> f32[2,16,4] {
          %a = f32[2,16,8]{2,1,0} parameter(0)
          %b = f32[2,8,4]{2,1,0} parameter(1)
          ROOT %dot.1 = f32[2,16,4]{2,1,0} dot(%a, %b), lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_contracting_dims={1}
        }

        ENTRY %main (x: f32[16,8]) -> f32[16,16] {
          %x = f32[16,8]{1,0} parameter(0)
          %call = (f32[16,16]{1,0}, s8[4096]{0}) custom-call(%x, %x), custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["1"]}}}
          ROOT %other = f32[16,16]{1,0} custom-call(%x), custom_call_target="cusolver"
        }
        """)  # noqa: E501
    assert program.products(text) == 2 * (2 * 16 * 4 * 8) + 2 * (16 * 16 * 8)


# ---------------------------------------------------------------- floors


@pytest.mark.parametrize(
    ("row", "floor"),
    [
        ("adamw", 28),
        ("clip_by_global_norm + adamw", 32),
        ("lamb", 40),
        ("lars", 28),
        ("schedule_free_adamw", 28),
        ("sm3", 20),
        ("adan", 44),
        ("apply_if_finite", 32),
    ],
)
def test_floors(row: str, floor: int) -> None:
    assert page.floor_of(row) == floor


def test_every_row_has_a_floor_or_a_reason() -> None:
    assert list(floors.FLOORS) == [case.name for case in cases.CASES]
    for row, text in floors.FLOORS.items():
        assert page.floor_of(row) is not None or floors.why_none(text)


def test_a_floor_counts_widths_repetitions_and_gram_matrices() -> None:
    parsed = floors.parse("g -> x:2; 5 * x:2 -> A:2; p # two numbers a row")
    assert parsed == floors.Floor(likes=4 + 2 + 5 * 2 + 4, grams=5 * 2, note="two numbers a row")
    shapes: trees.Shapes = {"layer": {"up": (4, 16), "bias": (16,)}}
    assert parsed.per_parameter(shapes) == 20 + 10 * 16 / 80


@pytest.mark.parametrize("text", ["", "none", "g; ; p", "g -> -> p", "g: p", "two*g p"])
def test_what_is_no_floor_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="floor"):
        floors.parse(text)


def test_nothing_on_an_h200_is_below_its_floor() -> None:
    """A floor above what was measured is wrong: nothing stays on this chip between two passes."""
    kept = stored.load(stored.file_of("h200", "rows"))
    assert kept is not None
    for job, result in kept.results.items():
        floor = page.floor_of(job.row)
        assert floor is None or "error" in result or result["moved"] > 0.999 * floor, job.row


# ---------------------------------------------------------------- the command


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--target", "v7"], "no target 'v7'; there are v5e, v6e, h200, cpu"),
        (["--target", "cpu", "--study", "mesh"], "one chip; a mesh needs another target"),
        (["--target", "cpu", "--rows", "adamm"], "no row matches 'adamm'"),
        (["--target", "cpu", "--study", "watch", "--rows", "adamm"], "no row matches 'adamm'"),
        (["--target", "cpu", "--check", "--json", "none.json"], "there is none for this target"),
    ],
)
def test_bad_input_says_what_to_do(argv: list[str], said: str) -> None:
    with pytest.raises(SystemExit, match=said):
        command_line.main(argv)


def test_a_missing_compiler_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chips.importlib.util, "find_spec", lambda name: None)
    for chip, extra in [("v5e", r"jax\[tpu\]"), ("h200", r"jax\[cuda13\]")]:
        with pytest.raises(SystemExit, match=f"--target {chip}.*pip install '{extra}=="):
            command_line.main(["--target", chip])


def test_results_are_kept_and_compared(tmp_path: Path) -> None:
    job, result = Job("adamw", "gradx", "wide"), {"moved": 28.0, "temporaries": 0.0, "seconds": 1}
    crash = {"error": "the compiler ended the process (-6)"}
    kept = stored.Stored("v5e", "rows", {"jax": "0"}, {job: result})
    kept.save(tmp_path / "kept.json")
    read = stored.load(tmp_path / "kept.json")
    assert read is not None
    assert read.results == kept.results
    assert not stored.worse(result, result)
    assert not stored.worse({**result, "moved": 28.2}, result)
    assert stored.worse({**result, "moved": 28.5}, result)
    assert stored.worse({**result, "temporaries": 0.1}, result)
    assert stored.worse(crash, result) == stored.worse(crash, None) == [crash["error"]]
    assert not stored.worse(result, crash)


def as_worker(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Has a script do what a worker should."""
    start = runs.subprocess.Popen
    monkeypatch.setattr(
        runs.subprocess,
        "Popen",
        lambda command, **how: start([command[0], "-S", "-c", script], **how),
    )


def test_a_chip_that_the_compiler_does_not_know_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    as_worker(monkeypatch, """print('{"refused": "no topology v6e:2x2"}')""")
    with pytest.raises(SystemExit, match=r"--target v6e: no topology v6e:2x2. .*'jax\[tpu\]=="):
        runs.run(chips.CHIPS["v6e"], [Job("adamw", "gradx", "wide")], lambda job, result: None)


def test_a_process_that_ends_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the next job gets a new process."""
    script = (
        "import json, sys\n"
        "print(json.dumps({'ready': 1}), flush=True)\n"
        "for line in sys.stdin:\n"
        "    if 'lamb' in line: sys.exit('F0000 x.cc:1] Check failed: a <= b')\n"
        "    print('noise'); print(json.dumps({'moved': 28.0}), flush=True)\n"
    )
    as_worker(monkeypatch, script)
    got: dict[str, runs.Result] = {}
    asked = [Job(row, "gradx", "wide") for row in ("adamw", "lamb", "lion")]
    runs.run(chips.CHIPS["cpu"], asked, lambda job, result: got.update({job.row: result}))
    assert got.pop("lamb") == {"error": "the compiler ended the process (1): Check failed: a <= b"}
    assert got == {"adamw": {"moved": 28.0}, "lion": {"moved": 28.0}}


def test_studies_ask_for_rows_that_there_are() -> None:
    assert [job.library for job in jobs.rows("^adamw$")] == ["gradx", "optax"]
    assert {job.row for job in jobs.mesh("")} == {"muon", "normuon", "soap", "shampoo"}


def test_what_decomposes_matrices_has_small_ones_where_that_is_slow_to_compile() -> None:
    shapes = {
        target: [job.tree for job in jobs.asked("rows", chips.CHIPS[target], "^(muon|soap)$")]
        for target in ("v5e", "h200")
    }
    assert shapes == {"v5e": ["wide", "wide", "wide thin"], "h200": ["wide", "wide", "wide"]}


@pytest.mark.parametrize("target", ["v5e", "h200", "cpu"])
def test_every_row_is_in_the_stored_table(target: str) -> None:
    kept = stored.load(stored.file_of(target, "rows"))
    assert kept is not None
    assert set(kept.results) == set(jobs.asked("rows", chips.CHIPS[target], ""))


def test_a_way_acts_elsewhere_for_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "POLICY", dict(policy.POLICY))
    monkeypatch.setattr(ways, "POLICY", policy.POLICY)
    chip = chips.CHIPS["h200"]
    changed = ways.changed(chip, ["reread=cpu,gpu", "sums="])
    ((name, value),) = set(changed.environment.items()) - set(chip.environment.items())
    monkeypatch.setenv(name, value)
    ways.change()
    assert policy.POLICY["reread"].targets == ("cpu", "gpu")
    assert policy.POLICY["sums"].targets == ()


@pytest.mark.parametrize("given", ["reread", "rereads=cpu", "reread=cuda"])
def test_a_way_that_does_not_exist_is_refused(given: str) -> None:
    with pytest.raises(SystemExit, match=f"--way {given}: must be .*'reread'.*'gpu'"):
        ways.changed(chips.CHIPS["cpu"], [given])
